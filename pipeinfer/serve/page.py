"""The page at `/`."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

PAGE = Path(__file__).with_name("page.html")


@cache
def page_response() -> Response:
    """One file with all that it needs; the browser is told to load nothing else and to run no other script."""
    text = PAGE.read_text()
    policy = [
        "default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'", f"script-src {_digests(text, 'script')}", f"style-src {_digests(text, 'style')}",
    ]  # fmt: skip
    headers = {
        "content-security-policy": "; ".join(policy), "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer", "cache-control": "no-cache",
    }  # fmt: skip
    return Response(text, media_type="text/html", headers=headers)


def _digests(text: str, element: str) -> str:
    found = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in found)
