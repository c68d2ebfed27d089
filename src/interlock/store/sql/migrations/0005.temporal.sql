-- Engines that lease single commands instead of whole runs: who carries a command out, and what came of it.
-- depends: 0002.security

-- The fence grows with every attempt; a write under an older one is refused. The event is there once the command is done,
-- and nobody claims it again. Rows go when their run ends.
create table claims (
    run_id text not null references runs,
    command text not null,
    org_id text not null,
    fence bigint not null,
    event jsonb,
    primary key (run_id, command)
);
alter table claims enable row level security;
create policy tenant on claims using (org_id = any(interlock_orgs())) with check (org_id = any(interlock_orgs()));
grant select, insert, update, delete on claims to interlock_app;
