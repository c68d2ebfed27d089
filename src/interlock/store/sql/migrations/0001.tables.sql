-- Tables and indexes. Every row belongs to an organisation (org_id), except those of `workers` and the two tables of moves.
-- 0002 turns row-level security on; ../functions holds the functions.
-- depends:

-- Organisations, keys, values ------------------------------------------------------------------------------------------

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

-- Workflows ------------------------------------------------------------------------------------------------------------

-- Objects that were stored ahead of the commit that names them. The row is written before the object and goes with that commit; the
-- sweeper deletes an object that none names, and marks it first.
create table pending_objects (
    name text primary key,
    org_id text not null references orgs,
    created_at timestamptz not null default now(),
    swept_at timestamptz
);
create index pending_objects_age on pending_objects (created_at);

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

-- Policies -------------------------------------------------------------------------------------------------------------

-- Policy sets that were activated, each named by the digest of its text.
create table policy_sets (
    org_id text not null references orgs,
    version text not null,
    text text not null,
    created_by text not null,
    created_at timestamptz not null default now(),
    primary key (org_id, version)
);

-- The policy set of every call of an organisation, also of runs in flight. Without a row, or without a version, it is the built-in one.
create table active_policies (
    org_id text primary key references orgs,
    version text,
    activated_by text not null,
    activated_at timestamptz not null default now(),
    foreign key (org_id, version) references policy_sets
);

-- Runs -----------------------------------------------------------------------------------------------------------------

-- The moves of `runs.status` and `effects.status` that triggers allow; 0002 fills them.
create table run_moves (old text not null, new text not null, primary key (old, new));
create table effect_moves (old text not null, new text not null, primary key (old, new));

create table runs (
    run_id text primary key,
    org_id text not null references orgs,
    workflow text not null,
    version text not null,
    engine text not null default 'postgres',
    priority smallint not null default 0 check (priority between -100 and 100),
    machine integer not null default 1, -- the version of the machine that drives it
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
    foreign key (org_id, workflow, version) references workflow_versions,
    unique (run_id, org_id) -- for the foreign keys: rows of a run are of its organisation
);
create index runs_recent on runs (org_id, created_at desc);

-- What stands behind the tokens in a signal or in edited arguments; the run's own vault holds those of its input.
create table run_vaults (
    vault_id bigint generated always as identity primary key,
    org_id text not null references orgs,
    run_id text not null,
    vault jsonb not null,
    foreign key (run_id, org_id) references runs (run_id, org_id)
);
create index run_vaults_run on run_vaults (run_id);

create table journal (
    run_id text not null,
    seq integer not null,
    org_id text not null,
    event jsonb not null,
    primary key (run_id, seq),
    foreign key (run_id, org_id) references runs (run_id, org_id)
);

-- A signal stays until its event is on record, also where another engine has received it (`forwarded_at`).
create table signals (
    signal_id bigint generated always as identity primary key,
    org_id text not null,
    run_id text not null,
    event jsonb not null,
    created_at timestamptz not null default now(),
    forwarded_at timestamptz,
    foreign key (run_id, org_id) references runs (run_id, org_id)
);
create index signals_run on signals (run_id);

-- Every signal that a run was sent, for as long as the run is kept: one id counts once, also after its event left `signals`.
create table signal_ids (
    run_id text not null,
    signal_id text not null,
    org_id text not null,
    name text not null,
    primary key (run_id, signal_id),
    foreign key (run_id, org_id) references runs (run_id, org_id)
);

-- Runs that some process follows, until when. `settle_v1` notifies changes of these runs only: a commit with a notification waits
-- for every other such commit of the server, so runs without a follower must cost nothing. Lost in a crash, and renewed by followers.
create unlogged table followed_runs (
    run_id text not null,
    org_id text not null,
    until timestamptz not null,
    primary key (run_id, org_id)
);

create table effects (
    run_id text not null,
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
    unique (org_id, idempotency_key),
    foreign key (run_id, org_id) references runs (run_id, org_id)
);

-- The newest good answer to a call, by the keyed digest of all that went into the call.
create table results (
    org_id text not null references orgs,
    key text not null,
    output jsonb not null,
    created_at timestamptz not null default now(),
    primary key (org_id, key)
);

-- Who drives what --------------------------------------------------------------------------------------------------------

-- Who drives a run, and when it wants attention next. The fence grows with every takeover; a write that
-- carries an older one is refused, so a worker that slept past its lease cannot harm the run.
-- A run that its engine keeps itself is leased to the engine, under its name, and counts like any leased run.
create table queue (
    run_id text primary key,
    org_id text not null,
    workflow text not null default '',
    priority smallint not null default 0 check (priority between -100 and 100),
    engine text not null default 'postgres',
    machine integer not null default 1, -- only workers that know this version may claim it
    available_at timestamptz not null default now(),
    worker text,
    fence bigint not null default 0,
    lease_until timestamptz,
    -- Drives that ended in an error of Interlock's own since one last ended well.
    crashes integer not null default 0,
    -- Take-overs in a row from workers that died while the run got no further, which those were (meaningless while there were none;
    -- one that is seen again had not died), and how long the journal was when the run was claimed.
    crash_streak smallint not null default 0,
    crashed_workers text[] not null default '{}',
    leased_seq integer,
    -- Fencing token of the last lease that ran out: its worker may have made calls that are not on record.
    lost_fence bigint,
    -- Which busy worker makes room for a run that has to be driven alone, and until when it has said so.
    room_by text,
    room_until timestamptz,
    foreign key (run_id, org_id) references runs (run_id, org_id)
);
create index queue_worker on queue (worker) where worker is not null;
-- A lane is a workflow of an organisation. A claim hops from lane to lane in this index, and in each reads the first few rows: all
-- keys ascending, so that one comparison of rows can hop. What sleeps until a signal is not in it.
create index queue_lanes on queue (engine, org_id, workflow, (-priority), ((fence = 0)::integer), available_at)
    where worker is null and available_at < 'infinity';
create index queue_leased on queue (engine, org_id, workflow) where worker is not null;
create index queue_signalled on queue (engine, available_at) where worker = engine;
create index queue_lost on queue (run_id) where crash_streak > 0;
create index queue_suspects on queue (engine, available_at) where crash_streak = 3 and worker is null;

-- Engines that lease single commands instead of whole runs: who carries a command out, and what came of it. The fence grows with
-- every attempt; a write under an older one is refused. The event is there once the command is done, and it is not claimed again.
-- Rows are deleted when their run ends.
create table claims (
    run_id text not null,
    command text not null,
    org_id text not null,
    fence bigint not null,
    event jsonb,
    primary key (run_id, command),
    foreign key (run_id, org_id) references runs (run_id, org_id)
);

-- What calls that are under way may use of a budget, in tokens and nano-USD; what they used, once they have ended and until the scope
-- says so itself. The scope is `run:` and a run's id. The holder is a command; `fence` is the fencing token under which it is carried out, 0
-- for a call that is the run's whichever worker drives it, and negative for ended calls that were made again under that token. Rows are deleted when the run ends; after `until` they do not count.
create table reservations (
    scope text not null,
    holder text not null,
    fence bigint not null,
    org_id text not null,
    tokens bigint not null,
    nano_usd bigint not null,
    until timestamptz not null default 'infinity',
    primary key (scope, holder, fence, org_id)
);

-- Processes that drive runs. They belong to the installation, not to an organisation; only functions write here.
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

-- Questions to people ------------------------------------------------------------------------------------------------------

create table reviews (
    review_id text primary key,
    org_id text not null,
    run_id text not null,
    step text not null,
    purpose text not null check (purpose in ('approve', 'approve_act', 'confirm')),
    title text not null,
    role text not null,
    show jsonb not null,
    act jsonb,
    status text not null default 'open' check (status in ('open', 'approved', 'rejected', 'closed')),
    decided_by text,
    note text,
    created_at timestamptz not null default now(),
    decided_at timestamptz,
    foreign key (run_id, org_id) references runs (run_id, org_id),
    unique (review_id, org_id)
);
create index reviews_open on reviews (org_id, created_at) where status = 'open';
create index reviews_run on reviews (run_id);

-- A person's yes to the act with this digest, which the review is about. `step` is the effect's name in the ledger, `consumed_by`
-- its idempotency key: an approval is used up by one effect and stays its own in every attempt at it. `signature` is the application's.
create table approvals (
    review_id text primary key,
    org_id text not null references orgs,
    run_id text not null,
    step text not null,
    digest text not null,
    approver text not null,
    roles text[] not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    signature text not null,
    consumed_by text,
    consumed_at timestamptz,
    revoked_by text,
    revoked_at timestamptz,
    check ((consumed_by is null) = (consumed_at is null)),
    check ((revoked_by is null) = (revoked_at is null)),
    check (consumed_at is null or revoked_at is null),
    foreign key (run_id, org_id) references runs (run_id, org_id),
    foreign key (review_id, org_id) references reviews (review_id, org_id)
);
create index approvals_act on approvals (run_id, step);

-- purpose: `step` failed for good and is held; `compensation` could not be done; `run` failed and was cleaned up;
-- `parked_run`: Interlock itself failed at driving it, again and again. `step` is '' where it is about the whole run.
create table dead_letters (
    dead_letter_id text primary key,
    org_id text not null references orgs,
    run_id text not null,
    step text not null,
    purpose text not null check (purpose in ('step', 'compensation', 'run', 'parked_run')),
    code text not null,
    reason text not null,
    status text not null default 'open' check (status in ('open', 'requeued', 'discarded', 'closed')),
    decided_by text,
    note text,
    new_run text,
    created_at timestamptz not null default now(),
    decided_at timestamptz,
    foreign key (run_id, org_id) references runs (run_id, org_id)
);
create index dead_letters_open on dead_letters (org_id, created_at) where status = 'open';
create unique index dead_letters_once on dead_letters (run_id, step, purpose) where status = 'open';

-- The record and what is sent out ------------------------------------------------------------------------------------------

-- Entries written together are the leaves of one hash tree; the signature is of its root, and `proof` leads from the entry to it.
create table audit (
    org_id text not null,
    seq bigint not null,
    event_id text not null,
    entry jsonb not null,
    prev_hash text not null,
    hash text not null,
    key_id text not null,
    signature text not null,
    proof text not null,
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

-- Receivers of events. One process at a time sends to each: `holder`, until `held_until`. No process was configured with a receiver
-- since `seen_at`; `accepted_at` is when it last took an event.
create table event_sinks (
    sink text primary key,
    seen_at timestamptz not null default now(),
    accepted_at timestamptz,
    holder text not null default '',
    held_until timestamptz not null default '-infinity'
);

-- Events on their way, one row for each receiver, made from the outbox row and deleted when the receiver has it. Events of one
-- `lane` (the run, or '' without one) are sent in the order of `event_id`. `tries` are the failures so far, `attempts` those between
-- which the receiver took another event, so that only these are a sign against the event. `refused`: not sent again by itself.
create table deliveries (
    sink text not null references event_sinks on delete cascade,
    event_id bigint not null,
    org_id text not null,
    lane text not null,
    topic text not null,
    payload jsonb not null,
    created_at timestamptz not null,
    status text not null default 'pending' check (status in ('pending', 'refused')),
    tries integer not null default 0,
    attempts integer not null default 0,
    failed_at timestamptz,
    next_try timestamptz not null default now(),
    reason text not null default '',
    primary key (sink, event_id)
);
create index deliveries_pending on deliveries (sink, event_id) where status = 'pending';
create index deliveries_failed on deliveries (sink, org_id, lane) where status = 'pending' and tries > 0;
create index deliveries_refused on deliveries (event_id) where status = 'refused';

-- Work that one process of all does every so often. `holder` is at it until `held_until`.
create table schedule (
    name text primary key,
    due_at timestamptz not null,
    holder text not null default '',
    held_until timestamptz not null default '-infinity'
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
    primary key (trace_id, span_id, org_id)
);

-- Whether tools and providers can be called ----------------------------------------------------------------------------------

-- A breaker that never saw a failure has no row. `failures` are those in a row while it is closed; `probes` maps the calls
-- let through on trial while it is half open to the second (Unix time) at which they are given up.
create table breakers (
    org_id text not null references orgs,
    target text not null,
    state text not null default 'closed' check (state in ('closed', 'open', 'half_open')),
    failures timestamptz[] not null default '{}',
    open_until timestamptz,
    probes jsonb not null default '{}',
    succeeded integer not null default 0,
    primary key (org_id, target)
);

-- Every tool with a health check in a deployed head version. `claim` grows with every check, so that a poller which slept
-- past its turn cannot report; `bad` counts bad answers in a row.
create table tool_health (
    org_id text not null references orgs,
    tool text not null,
    bundle text not null,
    contract jsonb not null,
    healthy boolean not null default true,
    bad integer not null default 0,
    detail text not null default '',
    checked_at timestamptz,
    next_at timestamptz not null default now(),
    claim bigint not null default 0,
    primary key (org_id, tool, bundle)
);
create index tool_health_next on tool_health (next_at);

-- concurrency: runs driven, or calls under way, at once. rate: runs begun, or calls made, in `per_seconds`.
create table quotas (
    org_id text not null references orgs,
    scope text not null check (scope in ('org', 'workflow', 'tool')),
    name text not null,
    concurrency integer check (concurrency >= 0),
    rate integer check (rate >= 0),
    per_seconds double precision not null default 60 check (per_seconds > 0 and per_seconds <= 86400),
    primary key (org_id, scope, name),
    check (concurrency is not null or rate is not null),
    check ((scope = 'org') = (name = ''))
);

-- What counts towards them: the starts of the last `per_seconds`, and calls that hold a slot.
create table quota_uses (
    use_id bigint generated always as identity primary key,
    org_id text not null,
    scope text not null,
    name text not null,
    holder text not null,
    at timestamptz not null,
    lease_until timestamptz
);
create index quota_uses_by_time on quota_uses (org_id, scope, name, at);
create index quota_uses_held on quota_uses (holder);

-- Model calls that go through a provider's batch API ---------------------------------------------------------------------------

-- Calls of one model, submitted together. `provider_id` is the provider's name for it. From `next_check` on it is due to be looked
-- at; until `taken_until` a process is at it, or has died over it: then it is unknown whether a `submitting` batch was submitted.
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
    check ((status = 'submitting') <= (provider_id is null)),
    unique (batch_id, org_id)
);

-- One call of one step. `call_id` is what the provider answers to: a request that differs is another one. `tokens` is the most
-- that it may use; after `until` the answer is not wanted any more. A result that is null may not be read.
create table batched_calls (
    call_id text primary key,
    org_id text not null references orgs,
    run_id text not null,
    step text not null,
    attempt integer not null,
    pin text not null,
    request jsonb not null,
    tokens bigint not null,
    until timestamptz,
    status text not null default 'waiting' check (status in ('waiting', 'submitted', 'done')),
    batch_id text,
    result jsonb,
    created_at timestamptz not null default now(),
    unique (run_id, step),
    check (status <> 'submitted' or batch_id is not null),
    foreign key (run_id, org_id) references runs (run_id, org_id),
    foreign key (batch_id, org_id) references batches (batch_id, org_id)
);
create index batched_calls_waiting on batched_calls (org_id, pin, created_at) where status = 'waiting';
create index batched_calls_batch on batched_calls (batch_id) where batch_id is not null;
