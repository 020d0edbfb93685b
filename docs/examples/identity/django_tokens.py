"""Issue tokens for streamer from a Django backend, with a secret that both know.

Include `urlpatterns` in the URLs of the project; users are those of Django's own sessions. As for
any POST, Django asks for its CSRF token.
"""

import os
import time
import uuid

import jwt
from django.http import HttpRequest, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path

LIFETIME_SECONDS = 600


def streamer_token(request: HttpRequest) -> HttpResponseBase:
    """Sign a short-lived token; the page sends it to streamer, and asks for another in time."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    if not request.user.is_authenticated:
        return JsonResponse({"error": "log in first"}, status=401)
    now = int(time.time())
    claims = {
        "sub": str(request.user.pk),
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        "jti": uuid.uuid4().hex,
        "aud": "streamer",
        "topics": ["stock:*", "market:*"],
    }
    token = jwt.encode(claims, os.environ["STREAMER_SECRET"], algorithm="HS256")
    return JsonResponse({"token": token, "expires_in": LIFETIME_SECONDS})


urlpatterns = [path("streamer-token", streamer_token)]
