"""Pays money back through the bank's HTTP service; can take a refund back, and can say whether one happened."""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from interlock_tool import Retry

TIMEOUT = 20  # seconds; below the sandbox's own 30, so that a slow bank ends as a clear sentence

Record = dict[str, Any]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A bank that sends a payment elsewhere is not the bank we know: the 3xx becomes an error."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def _route(request: urllib.request.Request) -> None:
    """Sends the request through the proxy of the environment, if there is one.

    urllib's own handling would skip the proxy for hosts in no_proxy; from inside the sandbox there is no way
    past it, so the skipped request could only fail.
    """
    name = f"{request.type}_proxy"
    proxy = os.environ.get(name.upper()) or os.environ.get(name)
    if not proxy:
        return
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    request.set_proxy(parts.netloc.rpartition("@")[2], "http" if request.type == "http" else "https")
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Proxy-Authorization", "Basic " + base64.b64encode(pair.encode()).decode())


def _call(method: str, url: str, body: Record | None = None, key: str | None = None) -> Record:
    """One exchange with the bank.

    Raises `Retry` if asking again with the same key may help (5xx, 429, no or half an answer), RuntimeError else.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    data = None if body is None else json.dumps(body, sort_keys=True).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    _route(request)
    try:
        with _OPENER.open(request, timeout=TIMEOUT) as answer:
            record = json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read(300).decode("utf-8", "replace").strip()
        sentence = f"The bank answered {error.code} to {method}: {text}"
        if error.code >= 500 or error.code == 429:
            raise Retry(sentence) from None
        raise RuntimeError(sentence) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Retry(f"The bank gave no whole answer to {method} ({type(error).__name__}: {error}).") from None
    if not isinstance(record, dict):
        raise RuntimeError(f"The bank answered {method} with something that is not a JSON object.")
    return record


def _output(record: Record) -> Record:
    """The same for the first answer and for a repeated one, so that a retry gives the same result."""
    return {name: record[name] for name in ("refund_id", "ticket_id", "customer_id", "amount", "currency")}


def run(
    *, ticket_id: str, customer_id: str, amount: float, currency: str, reason: str, bank_url: str, context: Record
) -> Record:
    """Issues the refund once, however often it is called with the same `context["idempotency_key"]`."""
    body = {
        "ticket_id": ticket_id,
        "customer_id": customer_id,
        "amount": amount,
        "currency": currency,
        "reason": reason,
    }
    return _output(_call("POST", f"{bank_url.rstrip('/')}/refunds", body, context["idempotency_key"]))


def compensate(input: Record, output: Record, context: Record) -> Record:  # noqa: A002 (the contract's name)
    """Takes the refund in `output` back. The context's key belongs to the compensation, not to the refund."""
    refund = urllib.parse.quote(output["refund_id"], safe="")
    url = f"{input['bank_url'].rstrip('/')}/refunds/{refund}/reverse"
    record = _call("POST", url, {}, context["idempotency_key"])
    return {"refund_id": record["refund_id"], "reversed": True}


def probe(input: Record, context: Record) -> Record:  # noqa: A002 (the contract's name)
    """Whether the refund with `context["idempotency_key"]` happened, and what `run` would have returned."""
    key = urllib.parse.quote(context["idempotency_key"], safe="")
    found = _call("GET", f"{input['bank_url'].rstrip('/')}/refunds?key={key}")["refunds"]
    return {"happened": bool(found), "output": _output(found[0]) if found else None}
