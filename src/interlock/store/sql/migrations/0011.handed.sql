-- Signals stay until their event is on record, also where another engine has been told them.
-- depends: 0010.places

alter table signals add column forwarded_at timestamptz;
