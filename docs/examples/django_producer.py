"""Publish from Django, in one file: python django_producer.py runserver 127.0.0.1:8000.

REDIS_URL names the Redis; POST /alerts/42 sends an alert to the user 42. In a project of your own,
the publisher goes where the others are made once: an `apps.py`, or beside the Celery application.
"""

import os
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import path

from streamer import PublishFailedError
from streamer.publisher.sync import Publisher, PublisherOptions

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of-this-example")

# One for the process, shared by its threads; a worker that is forked gets a connection of its own.
publisher = Publisher(os.environ["REDIS_URL"], PublisherOptions(hold_seconds=5))


def send_alert(request: HttpRequest, user_id: str) -> JsonResponse:
    """Send a user an alert; answer with its sequence once Redis has it."""
    alert = {
        "type": "alert",
        "alert_id": int(request.GET.get("id", "1")),
        "stock_code": "005930",
        "alert_type": "price",
        "message": request.body.decode() or "the price has risen",
    }
    try:
        receipt = publisher.publish(f"alerts:{user_id}", alert)
    except PublishFailedError:
        return JsonResponse({"error": "not published: try again later"}, status=503)
    assert receipt.position is not None
    return JsonResponse({"sequence": receipt.position.sequence})


urlpatterns = [path("alerts/<user_id>", send_alert)]

if __name__ == "__main__":
    django.setup()
    execute_from_command_line(sys.argv)
