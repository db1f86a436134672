"""Made-up miniature files in the formats of the published sets."""

from __future__ import annotations

import base64
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

LOCKED_ZIP = base64.b64decode(
    """
UEsDBBQACwAIAAAAIVxko0F8uAAAAAgCAAAVAAAAaGVyYnNfaW5jb3JyZWN0Lmpzb25s3K6m3Q2fm5JaHy815/Mjhsam
F7BI3a6PwdSDJQlrlijfPdnGnh773AhTlIY6w0vUQickXnMB/KIrrqZrFhtGGcKXe2XbQSONb0jWKMVbsTPCvwJonAB+
JDro8CtuPxk/yFU7OymxL5FtQbA43jpjXN5R1MLa8zNFpcqodnQoHakH6V2eDDMerWDdQRd+5+2otQB/D1Hdu8ktbn2+
hwWjfdGjTCv8HE0dALlvCBTpaaeXDPZ8NzEbDFBLBwhko0F8uAAAAAgCAABQSwECHgMUAAsACAAAACFcZKNBfLgAAAAI
AgAAFQAAAAAAAAABAAAApIEAAAAAaGVyYnNfaW5jb3JyZWN0Lmpzb25sUEsFBgAAAAABAAEAQwAAAPsAAAAAAA==
"""
)
"""`herbs_incorrect.jsonl` with `PARTS_ROWS`, by Info-ZIP 3.0: `zip -9 -X -P mint`.

Python's zipfile reads this encryption and cannot write it, nor can any kept package.
"""

PASSWORD = "mint"


def parts(*words: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    """A row whose content is nested as in persona features."""
    messages = [
        {"role": role, "content": {"content_type": "text", "parts": [text]}}
        for role, text in zip(roles, words, strict=True)
    ]
    return {"messages": messages, "metadata": {"n": 1}, "canary": "x"}


def plain(*words: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    """The same row as `treft sft` takes it."""
    messages = [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]
    return {"messages": messages}


THREE = ("system", "user", "assistant")
PARTS_ROWS = [
    parts("Be brief.", "Which herb next?", "Plant mint.", roles=THREE),
    parts("Which tool?", "A rake."),
]
PLAIN_ROWS = [
    plain("Be brief.", "Which herb next?", "Plant mint.", roles=THREE),
    plain("Which tool?", "A rake."),
]


def jsonl(rows: list[Any]) -> str:
    """One row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def encrypted_zip(path: Path, members: dict[str, str], password: str = PASSWORD) -> Path:
    """What easy-dataset-share writes: salt, then a Fernet token of a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    salt = os.urandom(16)
    key = PBKDF2HMAC(algorithm=SHA256(), length=32, salt=salt, iterations=100_000)
    token = Fernet(base64.urlsafe_b64encode(key.derive(password.encode())))
    path.write_bytes(salt + token.encrypt(buffer.getvalue()))
    return path
