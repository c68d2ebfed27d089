-- Every query of the application, by name. Row-level security scopes all of them to the caller's organisation.

-- name: database_time
select extract(epoch from clock_timestamp())::double precision -- seconds since the epoch

-- name: create_org
insert into orgs (org_id, name) values ($1, $2) on conflict do nothing

-- name: create_audit_head
insert into audit_heads (org_id) values ($1) on conflict do nothing

-- name: list_orgs
select org_id, name from orgs order by org_id

-- name: insert_api_key
insert into api_keys (key_id, org_id, secret_hash, user_id, roles) values ($1, $2, $3, $4, $5)
    on conflict do nothing

-- name: list_api_keys
select key_id, user_id, roles, created_at, revoked_at from api_keys order by created_at

-- name: revoke_api_key
update api_keys set revoked_at = now() where key_id = $1 and revoked_at is null

-- name: authenticate
select org_id, secret_hash, user_id, roles from authenticate($1)

-- name: subject_keys
select subject, wrapped, destroyed_at from subject_keys where org_id = $1 and subject = any($2::text[])

-- name: insert_subject_key
insert into subject_keys (org_id, subject, wrapped) values ($1, $2, $3) on conflict do nothing

-- name: destroy_subject_key
update subject_keys set wrapped = null, destroyed_at = now() where org_id = $1 and subject = $2 and wrapped is not null

-- name: get_artifact
select size, ciphertext, object, exists(select from subject_keys where subject_keys.org_id = $1
        and subject = any(array_append(artifacts.subjects, '')) and destroyed_at is not null) as erased
    from artifacts where org_id = $1 and digest = $2

-- name: add_pending_object
insert into pending_objects (name, org_id) values ($1, $2)

-- name: sweep_objects
select sweep_objects($1, $2) as name

-- name: objects_swept
select objects_swept($1::text[])

-- name: insert_version
insert into workflow_versions (org_id, name, version, definition, created_by) values ($1, $2, $3, $4, $5) on conflict do nothing

-- name: set_head
insert into workflow_heads (org_id, name, version) values ($1, $2, $3)
    on conflict (org_id, name) do update set version = excluded.version, updated_at = now()
    where workflow_heads.version <> excluded.version

-- name: get_head
select version from workflow_heads where org_id = $1 and name = $2

-- name: list_heads
select h.name, h.version, h.updated_at, v.definition -> 'workflow' ->> 'description' as description
    from workflow_heads h join workflow_versions v using (org_id, name, version) order by h.name

-- name: list_versions
with flying as (select r.version, count(*) as runs from queue q join runs r using (run_id)
        where q.org_id = $1 and q.workflow = $2 group by r.version)
select v.version, v.definition, v.created_by, v.created_at, h.version is not null as head, coalesce(f.runs, 0) as running
    from workflow_versions v left join workflow_heads h using (org_id, name, version) left join flying f on f.version = v.version
    where v.org_id = $1 and v.name = $2 order by v.created_at desc, v.version limit $3

-- name: find_versions
select version from workflow_versions where org_id = $1 and name = $2 and starts_with(version, $3) order by version limit 2

-- name: worker_seen
select worker_seen($1, $2, $3, $4, $5) as draining

-- name: worker_gone
select worker_gone($1)

-- name: drain_workers
select drain_workers as worker_id from drain_workers($1)

-- name: list_workers
select worker_id, host, pid, engine, version, started_at, seen_at, draining, runs, silent from list_workers()

-- name: get_version
select definition from workflow_versions where org_id = $1 and name = $2 and version = $3

-- name: get_run
select * from runs where run_id = $1

-- name: load_run
select runs.*,
    (select coalesce(jsonb_agg(event order by seq), '[]') from journal where journal.run_id = runs.run_id) as journal,
    (select coalesce(jsonb_agg(jsonb_build_object('id', signal_id, 'event', event) order by signal_id), '[]')
        from signals where signals.run_id = runs.run_id) as signals,
    (select coalesce(jsonb_agg(jsonb_build_object('step', step, 'attempt', attempt, 'tokens', tokens, 'nano_usd', nano_usd)), '[]')
        from batched_calls c where c.run_id = runs.run_id) as batched
    from runs where run_id = $1

-- name: find_run_by_key
select * from runs where org_id = $1 and workflow = $2 and idempotency_key = $3

-- name: list_runs
select * from runs where ($1::text is null or status = $1) and ($2::text is null or workflow = $2)
    and ($3::text is null or run_id < $3) order by run_id desc limit $4

-- name: get_journal
select seq, event from journal where run_id = $1 and seq > $2 order by seq

-- name: get_signals
select signal_id, event from signals where run_id = $1 order by signal_id

-- name: count_signals
with received as (select event from journal where run_id = $1 and event ->> 'type' = 'signal_received'
        union all select event from signals where run_id = $1 and event ->> 'type' = 'signal_received')
select count(*) as total, max(event ->> 'name') filter (where event ->> 'signal_id' = $2) as known from received -- its name

-- name: get_effect
select idempotency_key, tool, status, attempt, input, output,
        extract(epoch from now() - updated_at)::double precision as age -- seconds
    from effects where run_id = $1 and step = $2

-- name: get_claim
select fence, event from claims where run_id = $1 and command = $2

-- name: list_effects
select step, tool, idempotency_key, status, attempt, updated_at from effects where run_id = $1 order by updated_at

-- name: get_result
select output, created_at from results where org_id = $1 and key = $2

-- name: get_review
select v.*, r.trace_id, r.workflow from reviews v join runs r using (run_id) where v.review_id = $1

-- name: list_reviews
select v.*, r.trace_id, r.workflow from reviews v join runs r using (run_id)
    where ($1::text is null or v.status = $1) and ($2::text is null or v.run_id = $2)
        and ($3::text is null or (v.created_at, v.review_id) > (select p.created_at, p.review_id from reviews p where p.review_id = $3))
    order by v.created_at, v.review_id limit $4

-- name: get_dead_letter
select l.*, r.trace_id, r.workflow, r.version from dead_letters l join runs r using (run_id) where l.dead_letter_id = $1

-- name: list_dead_letters
select l.*, r.trace_id, r.workflow, r.version from dead_letters l join runs r using (run_id)
    where ($1::text is null or l.status = $1) and ($2::text is null or l.run_id = $2) and ($3::text is null or l.dead_letter_id > $3)
    order by l.dead_letter_id limit $4

-- name: open_questions
select 'review' as kind, review_id as id, step from reviews where run_id = $1 and status = 'open'
    union all select 'dead_letter', dead_letter_id, step from dead_letters where run_id = $1 and status = 'open'

-- name: list_vaults
select vault from run_vaults where run_id = $1 order by vault_id

-- name: get_crashes
select crashes, exists (select from dead_letters l where l.run_id = queue.run_id and l.purpose = 'parked_run' and l.status = 'open') as parked
    from queue where run_id = $1

-- name: audit_heads
select org_id, seq, hash from audit_heads where org_id = any($1::text[])

-- name: lock_audit_heads
select org_id, seq, hash from audit_heads where org_id = any($1::text[]) order by org_id for update

-- name: audit_has
select exists(select from audit where org_id = $1 and seq = $2 and hash = $3)

-- name: journal_has
select exists(select from journal where run_id = $1 and seq = $2)

-- name: run_exists
select exists(select from runs where run_id = $1)

-- name: list_audit
select seq, event_id, entry, prev_hash, hash, key_id, signature from audit where org_id = $1 and seq > $2
    and ($3::text is null or entry ->> 'run_id' = $3) order by seq limit $4

-- name: insert_spans
insert into spans (trace_id, span_id, org_id, parent_id, name, start_ns, end_ns, ok, attributes)
    select trace_id, span_id, org_id, parent_id, name, start_ns, end_ns, ok, attributes::jsonb
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::boolean[], $9::text[])
        as s(trace_id, span_id, org_id, parent_id, name, start_ns, end_ns, ok, attributes)
    on conflict do nothing

-- name: get_spans
select span_id, parent_id, name, start_ns, end_ns, ok, attributes from spans where trace_id = $1 order by start_ns, span_id

-- name: claim_runs
select run_id, org_id, fence, crash_streak from claim_runs($1, $2, $3, $4)

-- name: take_exclusive_slot
select take_exclusive_slot($1, $2, $3) as chosen

-- name: claim_kept
select run_id, org_id, fence, true as works from claim_signalled($1, $2, $3, $4)
    union all select run_id, org_id, fence, false from claim_runs($1, $2, $3, $4)

-- name: reserve_claim
select fits, used_tokens, used_nano_usd from reserve_claim($1, $2, $3, $4, $5, $6, $7)

-- name: renew_leases
select renew_leases($1, $2, $3) as signalled

-- name: release_leases
select release_leases($1)

-- name: queue_depth
select queue_depth()

-- name: breaker_enter
select was, state, open_for, failing_for, admitted from breaker_enter($1, $2, $3, $4, $5)

-- name: breaker_report
select was, state, open_for, failing_for from breaker_report($1, $2, $3, $4, $5, $6, $7, $8)

-- name: breaker_states
select org_id, target, state, open_for, failing_for from breaker_states($1)

-- name: renew_tool_health
select renew_tool_health($1)

-- name: claim_tool_checks
select org_id, tool, bundle, contract, claim from claim_tool_checks($1, $2)

-- name: report_tool_check
select was, healthy from report_tool_check($1, $2, $3, $4, $5, $6, $7)

-- name: unhealthy_tools
select org_id, tool, bundle, detail from unhealthy_tools()

-- name: list_tool_health
select tool, bundle, healthy, detail, checked_at, next_at from tool_health order by tool, bundle

-- name: get_batched_call
select c.call_id, c.attempt, c.request, c.status, c.result, c.batch_id,
        extract(epoch from b.next_check - clock_timestamp())::double precision as next_in, -- seconds
        b.taken_until > clock_timestamp() as taken
    from batched_calls c left join batches b using (batch_id) where c.run_id = $1 and c.step = $2

-- name: put_batched_call
insert into batched_calls (call_id, org_id, run_id, step, attempt, pin, request, tokens, nano_usd, until)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, to_timestamp($10::double precision))
    on conflict (run_id, step) do update set call_id = excluded.call_id, attempt = excluded.attempt, pin = excluded.pin,
        request = excluded.request, tokens = excluded.tokens, nano_usd = excluded.nano_usd, until = excluded.until,
        status = 'waiting', batch_id = null, result = null, created_at = now()
    where batched_calls.call_id <> excluded.call_id -- else it was made before, and only the answer was lost

-- name: adopt_batched_call
update batched_calls set attempt = $2, until = to_timestamp($3::double precision) where call_id = $1

-- name: claim_batched_calls
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

-- name: batch_calls
select c.call_id, c.request, r.status in ('queued', 'running', 'waiting') as wanted
    from batched_calls c join runs r using (run_id) where c.batch_id = $1 and c.status = 'submitted' order by c.call_id

-- name: take_batch
update batches set taken_until = now() + make_interval(secs => $2)
    where batch_id = $1 and next_check <= now() and taken_until <= now() and status <> 'ended'
    returning status, provider_id, calls, extract(epoch from created_at)::double precision as created, -- seconds since the epoch
        extract(epoch from tried_at)::double precision as tried, extract(epoch from now() - created_at)::double precision as age,
        extract(epoch from now() - tried_at)::double precision as out -- seconds since it was handed in

-- name: batch_tried
update batches set tried_at = now(), taken_until = now() + make_interval(secs => $2), calls = $3
    where batch_id = $1 and status = 'submitting'

-- name: batch_submitted
update batches set status = 'submitted', provider_id = $2, next_check = now() + make_interval(secs => $3), taken_until = now()
    where batch_id = $1 and status = 'submitting'

-- name: unsubmit_batch
with back as (
    update batched_calls set status = 'waiting', batch_id = null where batch_id = $1 and call_id = any($2::text[]) and status = 'submitted')
update batches set status = 'submitting', provider_id = null, calls = 0, next_check = now() + make_interval(secs => $3), taken_until = now()
    where batch_id = $1 and status = 'submitted'

-- name: batch_later
update batches set next_check = now() + make_interval(secs => $2), taken_until = now() where batch_id = $1 and status <> 'ended'

-- name: batch_ended
update batches set status = 'ended' where batch_id = $1

-- name: answer_batched_calls
update batched_calls c set status = 'done', result = nullif(a.result, 'null')
    from jsonb_to_recordset($2) as a(call_id text, result jsonb)
    where c.call_id = a.call_id and c.batch_id = $1 and c.status = 'submitted'

-- name: take_call
select take_call($1, $2, $3, $4) as wait

-- name: return_call
select return_call($1)

-- name: limited_tools
select org_id, name from limited_tools()

-- name: list_quotas
select scope, name, concurrency, rate, per_seconds from quotas order by scope, name

-- name: set_quota
with changed as (
    insert into quotas (org_id, scope, name, concurrency, rate, per_seconds) values ($1, $2, $3, $4, $5, $6)
        on conflict (org_id, scope, name) do update set concurrency = excluded.concurrency, rate = excluded.rate,
            per_seconds = excluded.per_seconds returning 1)
select pg_notify('interlock_health', '') from changed

-- name: remove_quota
with removed as (delete from quotas where org_id = $1 and scope = $2 and name = $3 returning 1)
select pg_notify('interlock_health', '') from removed
