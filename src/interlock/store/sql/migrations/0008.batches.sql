-- Model calls that go through a provider's batch API.
-- depends: 0007.letters

-- Calls of one model, handed in together. `provider_id` is what the provider calls it. From `next_check` on somebody is to look
-- after it; until `taken_until` somebody is at it, or has died over it: then nobody knows whether a `submitting` batch was handed in.
-- `calls` were in it when that was last tried.
create table batches (
    batch_id text primary key,
    org_id text not null references orgs,
    pin text not null,
    status text not null default 'submitting' check (status in ('submitting', 'submitted', 'ended')),
    provider_id text,
    calls integer not null default 0,
    created_at timestamptz not null default now(),
    tried_at timestamptz not null default now(),
    next_check timestamptz not null default now(),
    taken_until timestamptz not null default now(),
    check ((status = 'submitting') <= (provider_id is null))
);

-- One call of one step. `call_id` is what the provider answers to: a request that differs is another one. `tokens` and `nano_usd` are
-- reserved from the run's budget; after `until` nobody wants the answer any more. A result that is null nobody may read.
create table batched_calls (
    call_id text primary key,
    org_id text not null references orgs,
    run_id text not null references runs,
    step text not null,
    attempt integer not null,
    pin text not null,
    request jsonb not null,
    tokens bigint not null,
    nano_usd bigint not null,
    until timestamptz,
    status text not null default 'waiting' check (status in ('waiting', 'submitted', 'done')),
    batch_id text references batches,
    result jsonb,
    created_at timestamptz not null default now(),
    unique (run_id, step),
    check (status <> 'submitted' or batch_id is not null)
);
create index batched_calls_waiting on batched_calls (org_id, pin, created_at) where status = 'waiting';
create index batched_calls_batch on batched_calls (batch_id) where batch_id is not null;

do $$ declare name text; begin
    foreach name in array array['batches', 'batched_calls'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
        execute format('grant select, insert, update, delete on %I to interlock_app', name);
    end loop;
end $$;
