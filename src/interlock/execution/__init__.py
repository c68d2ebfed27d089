"""The choke point: every effect passes the five phases of `kernel`; effect ledger, records, batched calls."""
