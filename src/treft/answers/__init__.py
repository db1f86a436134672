"""What is known of an answer: questions, logs, parsing, detectors."""
