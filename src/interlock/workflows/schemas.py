"""Compilation of JSON Schemas, and validation of values."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from interlock.base.errors import ContractViolation


def validator_for(schema: Any) -> Any:
    """A validator that opens no connection, for any reference in the schema.

    Raises:
        jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError: it is not a JSON Schema.
    """
    return jsonschema_rs.validator_for(schema, offline=True)


def check_value(validator: Any, value: Any, *, what: str) -> None:
    """Validates against a compiled schema.

    Raises:
        ContractViolation: names the first place; does not repeat the value.
    """
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        place = "/".join(str(part) for part in error.instance_path)
        where = f"{what}: {place}" if place else what
        raise ContractViolation(f"{where}: {_explain(error)}") from error


def _explain(error: Any) -> str:
    """Message of a schema violation without the value: values may be personal data."""
    path = [str(part) for part in error.schema_path]
    keyword = path[-1] if path else "schema"
    return (
        str(error.message)
        if keyword in {"required", "additionalProperties"}
        else f'does not meet "{keyword}" of its schema'
    )
