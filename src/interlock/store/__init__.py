"""PostgreSQL, objects, keys and artifacts. SQL lives in `sql/`; every row belongs to an organisation."""
