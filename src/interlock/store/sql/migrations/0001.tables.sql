-- Tables. Every row belongs to an organisation (org_id); 0002 turns row-level security on, 0003 adds the functions.
-- depends:

create table orgs (
    org_id text primary key,
    name text not null,
    created_at timestamptz not null default now()
);

create table api_keys (
    key_id text primary key,
    org_id text not null references orgs,
    secret_hash bytea not null,
    user_id text not null,
    roles text[] not null,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

-- One data key a subject ('' is the organisation itself), wrapped by the master key. Destroying one means
-- overwriting `wrapped` with null: every artifact under it turns unreadable, wherever it was copied.
create table subject_keys (
    org_id text not null references orgs,
    subject text not null,
    wrapped bytea,
    created_at timestamptz not null default now(),
    destroyed_at timestamptz,
    primary key (org_id, subject)
);

-- Encrypted values by keyed digest. Large ones live in the object store under `object`.
create table artifacts (
    org_id text not null,
    digest text not null,
    size bigint not null,
    subjects text[] not null,
    ciphertext bytea,
    object text,
    created_at timestamptz not null default now(),
    primary key (org_id, digest),
    check ((ciphertext is null) <> (object is null))
);

create table workflow_versions (
    org_id text not null references orgs,
    name text not null,
    version text not null,
    definition jsonb not null,
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (org_id, name, version)
);

-- Which version new runs get. Runs in flight stay on theirs.
create table workflow_heads (
    org_id text not null,
    name text not null,
    version text not null,
    updated_at timestamptz not null default now(),
    primary key (org_id, name),
    foreign key (org_id, name, version) references workflow_versions
);

create table run_moves (old text not null, new text not null, primary key (old, new));
create table effect_moves (old text not null, new text not null, primary key (old, new));

create table runs (
    run_id text primary key,
    org_id text not null references orgs,
    workflow text not null,
    version text not null,
    status text not null default 'queued',
    principal jsonb not null,
    idempotency_key text not null,
    input jsonb not null,
    vault jsonb,
    output jsonb,
    reason text,
    flags text[] not null default '{}',
    trace_id text not null,
    span_id text not null,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    nano_usd bigint not null default 0, -- 1e-9 USD, of the calls whose price is known
    unpriced integer not null default 0, -- calls whose price is not
    steps integer not null default 0,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    unique (org_id, workflow, idempotency_key),
    foreign key (org_id, workflow, version) references workflow_versions
);
create index runs_recent on runs (org_id, created_at desc);

-- Who drives a run, and when it wants attention next. The fence grows with every takeover; a write that
-- carries an older one is refused, so a worker that slept past its lease cannot harm the run.
create table queue (
    run_id text primary key references runs,
    org_id text not null,
    available_at timestamptz not null default now(),
    worker text,
    fence bigint not null default 0,
    lease_until timestamptz
);
create index queue_next on queue (available_at);
create index queue_worker on queue (worker) where worker is not null;

create table journal (
    run_id text not null references runs,
    seq integer not null,
    org_id text not null,
    event jsonb not null,
    primary key (run_id, seq)
);

create table signals (
    signal_id bigint generated always as identity primary key,
    org_id text not null,
    run_id text not null references runs,
    event jsonb not null,
    created_at timestamptz not null default now()
);
create index signals_run on signals (run_id);

create table effects (
    run_id text not null references runs,
    step text not null,
    org_id text not null,
    tool text not null,
    idempotency_key text not null,
    status text not null,
    attempt integer not null,
    input jsonb not null,
    output jsonb,
    updated_at timestamptz not null default now(),
    primary key (run_id, step),
    unique (org_id, idempotency_key)
);

create table reviews (
    review_id text primary key,
    org_id text not null,
    run_id text not null references runs,
    step text not null,
    purpose text not null check (purpose in ('approve', 'confirm')),
    title text not null,
    role text not null,
    show jsonb not null,
    status text not null default 'open' check (status in ('open', 'approved', 'rejected', 'closed')),
    decided_by text,
    note text,
    created_at timestamptz not null default now(),
    decided_at timestamptz
);
create index reviews_open on reviews (org_id, created_at) where status = 'open';
create index reviews_run on reviews (run_id);

create table audit (
    org_id text not null,
    seq bigint not null,
    event_id text not null,
    entry jsonb not null,
    prev_hash text not null,
    hash text not null,
    key_id text not null,
    signature text not null,
    primary key (org_id, seq)
);
create index audit_run on audit (org_id, (entry ->> 'run_id'));

create table audit_heads (
    org_id text primary key references orgs,
    seq bigint not null default 0,
    hash text not null default ''
);

create table outbox (
    outbox_id bigint generated always as identity primary key,
    org_id text not null,
    topic text not null,
    payload jsonb not null,
    created_at timestamptz not null default now()
);

create table spans (
    trace_id text not null,
    span_id text not null,
    org_id text not null,
    parent_id text,
    name text not null,
    start_ns bigint not null,
    end_ns bigint not null,
    ok boolean not null,
    attributes jsonb not null,
    primary key (trace_id, span_id)
);
