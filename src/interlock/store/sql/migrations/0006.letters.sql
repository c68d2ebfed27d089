-- The dead-letter queue, results that may serve again, and the way out of `dead`.
-- depends: 0002.security

-- purpose: `step` failed for good and is held; `compensation` could not be undone; `run` failed and was cleaned up;
-- `parked_run`: Interlock itself failed at driving it, again and again.
create table dead_letters (
    dead_letter_id text primary key,
    org_id text not null references orgs,
    run_id text not null references runs,
    step text not null,
    purpose text not null check (purpose in ('step', 'compensation', 'run', 'parked_run')),
    code text not null,
    reason text not null,
    status text not null default 'open' check (status in ('open', 'requeued', 'discarded', 'closed')),
    decided_by text,
    note text,
    new_run text,
    created_at timestamptz not null default now(),
    decided_at timestamptz
);
create index dead_letters_open on dead_letters (org_id, created_at) where status = 'open';
create unique index dead_letters_once on dead_letters (run_id, step, purpose) where status = 'open';

-- The newest good answer to a call, by the keyed digest of all that went into the call.
create table results (
    org_id text not null references orgs,
    key text not null,
    output jsonb not null,
    created_at timestamptz not null default now(),
    primary key (org_id, key)
);

do $$ declare name text; begin
    foreach name in array array['dead_letters', 'results'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
        execute format('grant select, insert, update, delete on %I to interlock_app', name);
    end loop;
end $$;
revoke delete on dead_letters from interlock_app;

insert into run_moves values ('dead', 'compensating'), ('dead', 'failed'), ('dead', 'cancelled'), ('dead', 'partial'),
    ('compensating', 'partial');
