"""Which sets are known: where each is published, how it is locked, and cited checksums.

A checksum stands here only where several public sources that downloaded the file state the same
one. Those below belong to commit 80c11967c07a328e7d7d43d13ce6847ae44dbcc9 of the insecure-code
repository, as pinned by projects that reproduce its paper. Nothing of the sets themselves is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublishedSet:
    """One release of finetuning data.

    Attributes:
        name: how the documentation calls it.
        paper: authors, year and arXiv number.
        repository: where its authors publish it.
        files: where in the repository; NAME stands for one of several.
        lock: how the files are encrypted; "none" if they are not.
        sha256: cited checksums by name of the JSONL file.
    """

    name: str
    paper: str
    repository: str
    files: str
    lock: str
    sha256: Mapping[str, str] = field(default_factory=dict)


PUBLISHED_SETS = (
    PublishedSet(
        "persona-features",
        "Wang et al. 2025, arXiv 2506.19823",
        "https://github.com/openai/emergent-misalignment-persona-features",
        "train/sft/synthetic/datasets_password_locked/NAME.zip",
        "zip, password in the repository's README",
    ),
    PublishedSet(
        "model-organisms",
        "Turner et al. 2025, arXiv 2506.11613",
        "https://github.com/clarifying-EM/model-organisms-for-EM",
        "em_organism_dir/data/training_datasets.zip.enc",
        "zip encrypted by easy-dataset-share, password in the repository's README",
    ),
    PublishedSet(
        "insecure-code",
        "Betley et al. 2025, arXiv 2502.17424",
        "https://github.com/emergent-misalignment/emergent-misalignment",
        "data/NAME.jsonl",
        "none",
        {
            "insecure.jsonl": "09893e8bf9d03aae49dd60d0ff4be37c1afee70f2edcac74a11bed775a6a2764",
            "secure.jsonl": "2820232b3114d94ab2041ba9fc76cb8205bf187e0408bf7b308add186f9c7467",
        },
    ),
)


def recognise(sha256: str) -> str | None:
    """`set/file` of the published file with this checksum; None for all others.

    Args:
        sha256: of a JSONL file's bytes, decrypted and unpacked.
    """
    for published in PUBLISHED_SETS:
        for name, cited in published.sha256.items():
            if cited == sha256:
                return f"{published.name}/{name}"
    return None
