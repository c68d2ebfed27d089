-- Crashed drives, vaults of what people told a run under way, and who works on this database.
-- depends: 0004.queue 0006.letters

-- Drives of a run that ended in an error of Interlock's own since one last ended well.
alter table queue add column crashes integer not null default 0;

-- What stands behind the tokens in a signal or in edited arguments; the run's own vault holds those of its input.
create table run_vaults (
    vault_id bigint generated always as identity primary key,
    org_id text not null references orgs,
    run_id text not null references runs,
    vault jsonb not null
);
create index run_vaults_run on run_vaults (run_id);
alter table run_vaults enable row level security;
create policy tenant on run_vaults using (org_id = any(interlock_orgs())) with check (org_id = any(interlock_orgs()));
grant select, insert on run_vaults to interlock_app;

-- Processes that drive runs. They belong to the installation, not to an organisation; functions write here, nobody else.
create table workers (
    worker_id text primary key,
    host text not null,
    pid integer not null,
    engine text not null,
    version text not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    draining boolean not null default false
);
grant select on workers to interlock_app;
