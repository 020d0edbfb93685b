"""Issue tokens for streamer from a FastAPI backend, with a secret that both know.

STREAMER_SECRET=$(cat streamer-keys/secret) fastapi run fastapi_tokens.py
"""

import os
import time
import uuid
from typing import Annotated

import jwt
from fastapi import Cookie, Depends, FastAPI, HTTPException

SECRET = os.environ["STREAMER_SECRET"]
LIFETIME_SECONDS = 600

SESSIONS = {"alices-session": "42"}
"""The users who are logged in; put your own way to know them into `current_user`."""

app = FastAPI()


def current_user(session: Annotated[str | None, Cookie()] = None) -> str:
    """Return the id of the user who sent the request."""
    if session not in SESSIONS:
        raise HTTPException(401, "log in first")
    return SESSIONS[session]


@app.post("/streamer-token")
def streamer_token(user_id: Annotated[str, Depends(current_user)]) -> dict[str, str | int]:
    """Sign a short-lived token; the page sends it to streamer, and asks for another in time."""
    now = int(time.time())
    claims = {
        "sub": user_id,
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        "jti": uuid.uuid4().hex,
        "aud": "streamer",
        "topics": ["stock:*", "market:*"],
    }
    token = jwt.encode(claims, SECRET, algorithm="HS256")
    return {"token": token, "expires_in": LIFETIME_SECONDS}
