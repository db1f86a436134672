"""Attribution: which tokens carry a finetuned behaviour, and what to do about it (section 4)."""
