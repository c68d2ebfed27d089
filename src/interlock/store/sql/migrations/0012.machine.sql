-- The version of the machine that a run was submitted under: only workers that know it may claim it.
-- depends: 0011.handed

alter table runs add column machine integer not null default 1;
alter table queue add column machine integer not null default 1;
