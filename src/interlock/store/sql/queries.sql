-- Every query of the application: its name, the names and types of its parameters (`?`: may be null), what it is for.
-- Row-level security scopes all of them to the caller's organisation.

-- name: database_time()
-- The database's clock, in Unix seconds.
select extract(epoch from clock_timestamp())::double precision -- seconds since the epoch

-- name: org_exists(org_id text)
-- Whether there is such an organisation.
select exists(select from orgs where org_id = $1) as there

-- name: list_api_keys()
-- The organisation's API keys, oldest first, without their secrets.
select key_id, user_id, roles, created_at, revoked_at from api_keys order by created_at

-- name: authenticate(key_id text)
-- The owner of an API key that is in force; before the organisation is known.
select org_id, secret_hash, user_id, roles from authenticate($1)

-- name: subject_keys(org_id text, subjects text[])
-- The wrapped data keys of subjects.
select subject, wrapped, destroyed_at from subject_keys where org_id = $1 and subject = any($2::text[])

-- name: insert_subject_key(org_id text, subject text, wrapped bytea)
-- Adds a subject's data key, unless it has one.
insert into subject_keys (org_id, subject, wrapped) values ($1, $2, $3) on conflict do nothing

-- name: destroy_subject_key(org_id text, subject text)
-- Destroys a subject's data key, which erases every value about them.
update subject_keys set wrapped = null, destroyed_at = now() where org_id = $1 and subject = $2 and wrapped is not null

-- name: get_artifact(org_id text, digest text)
-- A sealed value, and whether a person it is about was erased.
select size, ciphertext, object, exists(select from subject_keys where subject_keys.org_id = $1
        and subject = any(array_append(artifacts.subjects, '')) and destroyed_at is not null) as erased
    from artifacts where org_id = $1 and digest = $2

-- name: add_pending_object(org_id text, name text)
-- Announces an object that is about to be put into the object store.
insert into pending_objects (name, org_id) values ($1, $2)

-- name: sweep_objects(seconds double precision, wanted integer)
-- Takes objects that were announced some seconds ago and belong to no commit, to be deleted.
select sweep_objects($1, $2) as name

-- name: objects_swept(names text[])
-- Forgets objects that were deleted.
select objects_swept($1::text[])

-- name: get_head(org_id text, name text)
-- The version that new runs of a workflow get.
select version from workflow_heads where org_id = $1 and name = $2

-- name: list_heads()
-- The organisation's workflows, with the version that new runs get.
select h.name, h.version, h.updated_at, v.definition -> 'workflow' ->> 'description' as description
    from workflow_heads h join workflow_versions v using (org_id, name, version) order by h.name

-- name: list_versions(org_id text, name text, limit bigint)
-- A workflow's versions, newest first, with the number of their runs in the queue.
with flying as (select r.version, count(*) as runs from queue q join runs r using (run_id)
        where q.org_id = $1 and q.workflow = $2 group by r.version)
select v.version, v.definition, v.created_by, v.created_at, h.version is not null as head, coalesce(f.runs, 0) as running
    from workflow_versions v left join workflow_heads h using (org_id, name, version) left join flying f on f.version = v.version
    where v.org_id = $1 and v.name = $2 order by v.created_at desc, v.version limit $3

-- name: find_versions(org_id text, name text, prefix text)
-- The versions that begin with some digits: none, the one, or two if it is ambiguous.
select version from workflow_versions where org_id = $1 and name = $2 and starts_with(version, $3) order by version limit 2

-- name: active_policies()
-- The policy sets in force, of all organisations.
select org_id, version from active_policies()

-- name: get_policy_set(org_id text, version text)
-- A policy set by its whole version.
select version, text, created_by, created_at from policy_sets where org_id = $1 and version = $2

-- name: find_policy_sets(org_id text, prefix text)
-- The policy sets that begin with some digits: none, the one, or two if it is ambiguous.
select version from policy_sets where org_id = $1 and starts_with(version, $2) order by version limit 2

-- name: list_policy_sets(org_id text)
-- The organisation's policy sets, newest first.
select version, created_by, created_at from policy_sets where org_id = $1 order by created_at desc, version

-- name: get_active_policy(org_id text)
-- The organisation's last activation; a null version is the built-in policy set.
select version, activated_by, activated_at from active_policies where org_id = $1

-- name: deployed_names(org_id text)
-- Tools and models of all deployed versions: names that a policy may use.
select coalesce((select array_agg(distinct t) from workflow_versions v, jsonb_object_keys(v.definition -> 'tools') t
        where v.org_id = $1), '{}') as tools,
    coalesce((select array_agg(distinct m) from workflow_versions v, jsonb_object_keys(v.definition -> 'models') m
        where v.org_id = $1), '{}') as models

-- name: worker_seen(worker_id text, host text, pid integer, engine text, version text)
-- Says that a worker is there; gives whether it is asked to drain.
select worker_seen($1, $2, $3, $4, $5) as draining

-- name: worker_gone(worker_id text)
-- Removes a worker that stopped.
select worker_gone($1)

-- name: list_workers()
-- The workers, with the number of their runs and the seconds since they were seen.
select worker_id, host, pid, engine, version, started_at, seen_at, draining, runs, silent from list_workers()

-- name: present_workers(silent_seconds double precision)
-- How many workers can claim runs.
select present_workers($1) as workers

-- name: needs_worker(run_id text, silent_seconds double precision)
-- Whether a run is due and no worker is there to claim it.
select needs_worker($1, $2) as needed

-- name: get_version(org_id text, name text, version text)
-- A version's definition.
select definition from workflow_versions where org_id = $1 and name = $2 and version = $3

-- name: get_run(run_id text)
-- A run's row.
select * from runs where run_id = $1

-- name: load_run(run_id text, page bigint)
-- All that a driver needs of a run: row, first page of the journal, signals, sealed input, reservations, last lost lease.
select runs.*, a.ciphertext, a.object, exists(select from subject_keys k where k.org_id = runs.org_id
        and k.subject = any(array_append(a.subjects, '')) and k.destroyed_at is not null) as erased,
    (select coalesce(jsonb_agg(event order by seq), '[]') from (select seq, event from journal
        where journal.run_id = runs.run_id order by seq limit $2) first_page) as journal,
    (select coalesce(jsonb_agg(jsonb_build_object('id', signal_id, 'event', event) order by signal_id), '[]')
        from signals where signals.run_id = runs.run_id) as signals,
    exists(select from reservations o where o.scope = 'run:' || runs.run_id) as reserved,
    (select q.lost_fence from queue q where q.run_id = runs.run_id) as lost_fence
    from runs left join artifacts a on a.org_id = runs.org_id and a.digest = runs.input ->> 'digest' where runs.run_id = $1

-- name: find_run_by_key(org_id text, workflow text, idempotency_key text)
-- The run that was accepted under an idempotency key.
select * from runs where org_id = $1 and workflow = $2 and idempotency_key = $3

-- name: list_runs(status text?, workflow text?, before text?, limit bigint)
-- A page of runs, newest first.
select * from runs where ($1::text is null or status = $1) and ($2::text is null or workflow = $2)
    and ($3::text is null or run_id < $3) order by run_id desc limit $4

-- name: get_journal(run_id text, after integer, most bigint?)
-- A run's events after a number, all or the first few.
select seq, event from journal where run_id = $1 and seq > $2 order by seq limit $3

-- name: run_state(run_id text)
-- How a run stands, without its journal. The marks differ once a review or a dead letter is opened or closed.
select r.run_id, r.status, r.reason, r.input_tokens, r.output_tokens, r.nano_usd, r.unpriced,
    (select max(seq) from journal j where j.run_id = r.run_id) as last_seq,
    (select count(*) || ':' || count(v.decided_at) from reviews v where v.run_id = r.run_id) as reviews_mark,
    (select count(*) || ':' || coalesce(max(l.dead_letter_id), '') from dead_letters l
        where l.run_id = r.run_id and l.status = 'open') as dead_letters_mark
    from runs r where r.run_id = $1

-- name: followed_reviews(run_id text, known text[])
-- A run's open reviews, and those that a follower knows as open.
select review_id, step, purpose, title, role, status, decided_by from reviews
    where run_id = $1 and (status = 'open' or review_id = any($2::text[])) order by created_at, review_id

-- name: follow_runs(org_id text, run_ids text[], seconds double precision)
-- Has changes of these runs notified for so many seconds.
with gone as (delete from followed_runs where until < now() and run_id <> all($2::text[]))
insert into followed_runs (run_id, org_id, until)
    select run_id, $1, now() + make_interval(secs => $3) from unnest($2::text[]) as followed(run_id) order by run_id
    on conflict (run_id, org_id) do update set until = excluded.until

-- name: get_signals(run_id text)
-- The signals of a run that are not on record yet.
select signal_id, event from signals where run_id = $1 order by signal_id

-- name: count_signals(run_id text, signal_id text)
-- How many signals a run was ever sent, and the name of the one with an id, if it was sent.
select count(*) as total, max(name) filter (where signal_id = $2) as known from signal_ids where run_id = $1

-- name: get_effect(run_id text, step text)
-- A step's entry in the effect ledger; `age` in seconds.
select idempotency_key, tool, status, attempt, input, output,
        extract(epoch from now() - updated_at)::double precision as age -- seconds
    from effects where run_id = $1 and step = $2

-- name: get_claim(run_id text, command text)
-- The claim of a command, and the event that answers it.
select fence, event from claims where run_id = $1 and command = $2

-- name: list_effects(run_id text)
-- A run's entries in the effect ledger.
select step, tool, idempotency_key, status, attempt, updated_at from effects where run_id = $1 order by updated_at

-- name: get_result(org_id text, key text)
-- The newest good answer to a call.
select output, created_at from results where org_id = $1 and key = $2

-- name: get_review(review_id text)
-- A review, with its run's trace and workflow, how its approval stands, and who asked for what it is about.
select v.*, r.trace_id, r.workflow, r.version, r.principal ->> 'user_id' as requester, a.expires_at, a.consumed_at,
        a.revoked_at, (select coalesce(array_agg(distinct l.decided_by), '{}') from dead_letters l
            where l.run_id = v.run_id and l.status = 'requeued') as requeued_by
    from reviews v join runs r using (run_id) left join approvals a using (review_id) where v.review_id = $1

-- name: get_approvals(run_id text, step text)
-- The approvals that an effect may rest on.
select review_id, org_id, run_id, step, digest, approver, roles, extract(epoch from expires_at)::bigint as expires, signature,
        consumed_by, revoked_at is not null as revoked, expires_at <= clock_timestamp() as expired
    from approvals where run_id = $1 and step = $2 order by created_at, review_id

-- name: get_rejection(run_id text, step text, digest text)
-- A review step in which a person refused this act.
select review_id from reviews where run_id = $1 and act ->> 'step' = $2 and act ->> 'digest' = $3
    and purpose = 'approve' and status = 'rejected' limit 1

-- name: list_reviews(status text?, run_id text?, after text?, limit bigint)
-- A page of reviews, oldest first.
select v.*, r.trace_id, r.workflow, r.version, r.principal ->> 'user_id' as requester, a.expires_at, a.consumed_at,
        a.revoked_at
    from reviews v join runs r using (run_id) left join approvals a using (review_id)
    where ($1::text is null or v.status = $1) and ($2::text is null or v.run_id = $2)
        and ($3::text is null or (v.created_at, v.review_id) > (select p.created_at, p.review_id from reviews p where p.review_id = $3))
    order by v.created_at, v.review_id limit $4

-- name: get_dead_letter(dead_letter_id text)
-- A dead letter, with its run's trace, workflow and version.
select l.*, r.trace_id, r.workflow, r.version from dead_letters l join runs r using (run_id) where l.dead_letter_id = $1

-- name: list_dead_letters(status text?, run_id text?, after text?, limit bigint)
-- A page of dead letters, oldest first.
select l.*, r.trace_id, r.workflow, r.version from dead_letters l join runs r using (run_id)
    where ($1::text is null or l.status = $1) and ($2::text is null or l.run_id = $2) and ($3::text is null or l.dead_letter_id > $3)
    order by l.dead_letter_id limit $4

-- name: open_questions(run_id text)
-- The open reviews and dead letters of a run.
select 'review' as kind, review_id as id, step from reviews where run_id = $1 and status = 'open'
    union all select 'dead_letter', dead_letter_id, step from dead_letters where run_id = $1 and status = 'open'

-- name: list_vaults(run_id text)
-- The vaults of a run's later inputs.
select vault from run_vaults where run_id = $1 order by vault_id

-- name: get_crashes(run_id text)
-- How often driving a run crashed, and whether it is parked.
select crashes, exists (select from dead_letters l where l.run_id = queue.run_id and l.purpose = 'parked_run' and l.status = 'open') as parked
    from queue where run_id = $1

-- name: audit_heads(orgs text[])
-- The heads of audit logs.
select org_id, seq, hash from audit_heads where org_id = any($1::text[])

-- name: lock_audit_heads(orgs text[])
-- The heads of audit logs, locked in order.
select org_id, seq, hash from lock_audit_heads($1)

-- name: audit_has(org_id text, seq bigint, hash text)
-- Whether an audit entry is there: a commit whose answer was lost took place.
select exists(select from audit where org_id = $1 and seq = $2 and hash = $3)

-- name: journal_has(run_id text, seq integer)
-- Whether an event is there: as above.
select exists(select from journal where run_id = $1 and seq = $2)

-- name: run_exists(run_id text)
-- Whether a run is there: as above.
select exists(select from runs where run_id = $1)

-- name: list_audit(org_id text, after bigint, run_id text?, limit bigint)
-- A page of the audit log, in order.
select seq, event_id, entry::text as entry, prev_hash, hash, key_id, signature, proof from audit where org_id = $1 and seq > $2
    and ($3::text is null or entry ->> 'run_id' = $3) order by seq limit $4

-- name: insert_spans(trace_ids text[], span_ids text[], orgs text[], parent_ids text[],
--   names text[], starts bigint[], ends bigint[], oks boolean[], attributes text[])
-- Adds finished spans; a column for each parameter, a row for each element.
insert into spans (trace_id, span_id, org_id, parent_id, name, start_ns, end_ns, ok, attributes)
    select trace_id, span_id, org_id, parent_id, name, start_ns, end_ns, ok, attributes::jsonb
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::boolean[], $9::text[])
        as s(trace_id, span_id, org_id, parent_id, name, start_ns, end_ns, ok, attributes)
    on conflict do nothing

-- name: get_spans(trace_id text)
-- The spans of a trace.
select span_id, parent_id, name, start_ns, end_ns, ok, attributes from spans where trace_id = $1 order by start_ns, span_id

-- name: claim_runs(worker_id text, lease_seconds double precision, wanted integer, engine text, oldest integer, newest integer)
-- Leases runs of the machine versions that the worker knows to it, fairly and within the quotas.
select run_id, org_id, fence, crash_streak from claim_runs($1, $2, $3, $4, $5, $6)

-- name: take_exclusive_slot(worker_id text, lease_seconds double precision, engine text, oldest integer, newest integer)
-- Whether this busy worker is to make room for a poison run that it can drive.
select take_exclusive_slot($1, $2, $3, $4, $5) as chosen

-- name: claim_kept(worker_id text, lease_seconds double precision, wanted integer, engine text, oldest integer, newest integer)
-- Leases runs that their engine keeps: those with signals (`works`), then others.
select run_id, org_id, fence, true as works from claim_signalled($1, $2, $3, $4, $5, $6)
    union all select run_id, org_id, fence, false from claim_runs($1, $2, $3, $4, $5, $6)

-- name: reserve(org_id text, run_id text, command text?, lease bigint, scope text, holder text, fence bigint, tokens bigint, nano bigint,
--   limit_tokens bigint?, limit_nano bigint?, finished jsonb)
-- Reserves tokens and money for a call, within the budget of its scope.
select fits, used_tokens, used_nano_usd from reserve($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: renew_leases(worker_id text, lease_seconds double precision, run_ids text[])
-- Renews leases; gives those of the runs that have signals.
select renew_leases($1, $2, $3) as signalled

-- name: release_leases(worker_id text)
-- Gives back all of a worker's leases.
select release_leases($1)

-- name: runs_due(engine text, oldest integer, newest integer, most bigint)
-- How many runs of these machine versions are due and without a worker, counted up to a number.
select runs_due($1, $2, $3, $4) as due

-- name: queue_depth()
-- How many runs are due.
select queue_depth()

-- name: breaker_enter(org_id text, target text, probe text, probe_limit integer, probe_seconds double precision)
-- Whether a call may go to a target whose breaker is not known to be closed.
select was, state, open_for, failing_for, admitted from breaker_enter($1, $2, $3, $4, $5)

-- name: breaker_report(org_id text, target text, probe text?, outcome text,
--   threshold integer, window_seconds double precision, open_seconds double precision, probe_limit integer)
-- What came of a call, for the target's breaker.
select was, state, open_for, failing_for from breaker_report($1, $2, $3, $4, $5, $6, $7, $8)

-- name: breaker_states(window_seconds double precision)
-- The breakers that are not simply closed, of all organisations.
select org_id, target, state, open_for, failing_for from breaker_states($1)

-- name: claim_tool_checks(wanted integer, lease_seconds double precision)
-- Leases health checks that are due.
select org_id, tool, bundle, contract, claim from claim_tool_checks($1, $2)

-- name: report_tool_check(org_id text, tool text, bundle text, claim bigint, good boolean?, detail text, bad_limit integer)
-- A health check's result; null if the tool could not be asked.
select was, healthy from report_tool_check($1, $2, $3, $4, $5, $6, $7)

-- name: unhealthy_tools()
-- The tools that may not be called, of all organisations.
select org_id, tool, bundle, detail from unhealthy_tools()

-- name: get_batched_call(run_id text, step text)
-- A step's batched call, and when its batch is looked at next.
select c.call_id, c.attempt, c.request, c.status, c.result, c.batch_id,
        extract(epoch from b.next_check - clock_timestamp())::double precision as next_in, -- seconds
        b.taken_until > clock_timestamp() as taken
    from batched_calls c left join batches b using (batch_id) where c.run_id = $1 and c.step = $2

-- name: put_batched_call(call_id text, org_id text, run_id text, step text, attempt integer, pin text, request jsonb, tokens bigint,
--   until double precision?)
-- Adds a step's batched call, or replaces it by another one.
insert into batched_calls (call_id, org_id, run_id, step, attempt, pin, request, tokens, until)
    values ($1, $2, $3, $4, $5, $6, $7, $8, to_timestamp($9::double precision))
    on conflict (run_id, step) do update set call_id = excluded.call_id, attempt = excluded.attempt, pin = excluded.pin,
        request = excluded.request, tokens = excluded.tokens, until = excluded.until,
        status = 'waiting', batch_id = null, result = null, created_at = now()
    where batched_calls.call_id <> excluded.call_id -- else it was made before, and only the answer was lost

-- name: adopt_batched_call(call_id text, attempt integer, until double precision?)
-- Lets a later attempt wait for the same batched call.
update batched_calls set attempt = $2, until = to_timestamp($3::double precision) where call_id = $1

-- name: claim_batched_calls(org_id text, pin text, batch_id text, limit bigint, tokens numeric, taken_seconds double precision)
-- Moves waiting calls of one model into a new batch, up to a number of calls and of tokens.
with tidied as ( -- of which nothing is left that anybody could look for
    delete from batches b where b.org_id = $1 and b.status = 'ended' and b.created_at < now() - interval '3 days'
        and not exists (select from batched_calls c where c.batch_id = b.batch_id)
), locked as materialized (
    select c.call_id, c.tokens, c.created_at from batched_calls c join runs r using (run_id)
        where c.org_id = $1 and c.pin = $2 and c.status = 'waiting' and (c.until is null or c.until > now())
            and r.status in ('queued', 'running', 'waiting')
        order by c.created_at, c.call_id limit $4 for update of c skip locked
), picked as (
    select call_id from (select call_id, sum(tokens) over (order by created_at, call_id) - tokens as before from locked) s
        where before < $5
), made as (
    insert into batches (batch_id, org_id, pin, taken_until)
        select $3, $1, $2, now() + make_interval(secs => $6) where exists (select from picked) on conflict do nothing
)
update batched_calls c set status = 'submitted', batch_id = $3 from picked where c.call_id = picked.call_id
    returning c.call_id

-- name: batch_calls(batch_id text)
-- The calls of a batch, and whether their answers are still wanted.
select c.call_id, c.request, r.status in ('queued', 'running', 'waiting') as wanted
    from batched_calls c join runs r using (run_id) where c.batch_id = $1 and c.status = 'submitted' order by c.call_id

-- name: take_batch(batch_id text, seconds double precision)
-- Leases a batch that is due to be looked at.
update batches set taken_until = now() + make_interval(secs => $2)
    where batch_id = $1 and next_check <= now() and taken_until <= now() and status <> 'ended'
    returning status, provider_id, calls, extract(epoch from created_at)::double precision as created, -- seconds since the epoch
        extract(epoch from tried_at)::double precision as tried, extract(epoch from now() - created_at)::double precision as age,
        extract(epoch from now() - tried_at)::double precision as out -- seconds since it was handed in

-- name: batch_tried(batch_id text, seconds double precision, calls integer)
-- Marks the moment before a batch is submitted.
update batches set tried_at = now(), taken_until = now() + make_interval(secs => $2), calls = $3
    where batch_id = $1 and status = 'submitting'

-- name: batch_submitted(batch_id text, provider_id text, check_seconds double precision)
-- Records the provider's id of a submitted batch.
update batches set status = 'submitted', provider_id = $2, next_check = now() + make_interval(secs => $3), taken_until = now()
    where batch_id = $1 and status = 'submitting'

-- name: unsubmit_batch(batch_id text, call_ids text[], check_seconds double precision)
-- Takes calls out of a batch that the provider refused, so that they are submitted again.
with back as (
    update batched_calls set status = 'waiting', batch_id = null where batch_id = $1 and call_id = any($2::text[]) and status = 'submitted')
update batches set status = 'submitting', provider_id = null, calls = 0, next_check = now() + make_interval(secs => $3), taken_until = now()
    where batch_id = $1 and status = 'submitted'

-- name: batch_later(batch_id text, seconds double precision)
-- Ends the lease of a batch until its next check.
update batches set next_check = now() + make_interval(secs => $2), taken_until = now() where batch_id = $1 and status <> 'ended'

-- name: batch_ended(batch_id text)
-- Marks a batch whose answers are all kept.
update batches set status = 'ended' where batch_id = $1

-- name: answer_batched_calls(batch_id text, answers jsonb)
-- Keeps the answers to a batch's calls; `answers` are rows of `BatchedAnswer`.
update batched_calls c set status = 'done', result = nullif(a.result, 'null')
    from jsonb_to_recordset($2) as a(call_id text, result jsonb)
    where c.call_id = a.call_id and c.batch_id = $1 and c.status = 'submitted'

-- name: take_call(org_id text, tool text, holder text, lease_seconds double precision)
-- Takes a slot for a tool's call; null, or the seconds after which to ask again.
select take_call($1, $2, $3, $4) as wait

-- name: return_call(holder text)
-- Gives a slot back.
select return_call($1)

-- name: limited_tools()
-- The tools that have a quota, of all organisations.
select org_id, name from limited_tools()

-- name: list_quotas()
-- The organisation's quotas.
select scope, name, concurrency, rate, per_seconds from quotas order by scope, name

-- name: hold_sink(sink text, holder text, lease_seconds double precision)
-- Takes or prolongs the right to send events to a receiver; false if another process has it.
select hold_sink($1, $2, $3) as held

-- name: release_sinks(holder text)
-- Gives up the right to send events.
select release_sinks($1)

-- name: spread_outbox(sinks text[], most integer)
-- Makes deliveries of outbox events, one for each receiver; how many events.
select spread_outbox($1::text[], $2) as moved

-- name: due_deliveries(sink text, holder text, most integer)
-- The next events for a receiver, in order.
select event_id, org_id, lane, topic, payload, created_at from due_deliveries($1, $2, $3)

-- name: delivered(sink text, holder text, events bigint[])
-- Forgets events that a receiver took; false if the right to send to it is lost.
select delivered($1, $2, $3::bigint[]) as held

-- name: delivery_failed(sink text, holder text, event_id bigint, reason text, refuse boolean, most integer, first_wait double precision, longest_wait double precision)
-- Puts an event off or refuses it; its status, or null if the right to send is lost.
select delivery_failed($1, $2, $3, $4, $5, $6, $7, $8) as status

-- name: refused_deliveries(event_id bigint?, most integer)
-- Events that receivers refused, all or one, of all organisations, oldest first.
select sink, event_id, org_id, topic, run_id, reason, tries, created_at, failed_at from refused_deliveries($1, $2)

-- name: take_job(job text, holder text, every double precision, lease_seconds double precision)
-- Takes a job of the schedule, if it is due and no other process is at it.
select take_job($1, $2, $3, $4) as taken

-- name: job_done(job text, holder text, wait_seconds double precision)
-- Ends a job of the schedule, and says when it is due again.
select job_done($1, $2, $3)
