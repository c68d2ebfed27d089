"""View of an error."""

from __future__ import annotations

from pydantic import Field

from interlock.services.views.base import View


class ErrorDetail(View):
    """Error: a stable code for programs, and one sentence for people."""

    code: str = Field(examples=["not_found"])
    message: str = Field(examples=['no run "run_0" in this organisation'])


class ErrorBody(View):
    """The body of every error response."""

    error: ErrorDetail
