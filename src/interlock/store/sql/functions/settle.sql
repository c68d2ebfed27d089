-- The write path.
-- Commits everything a batch of steps, runs and decisions has to say, in one transaction and one round trip.
-- Only the parts that are there cost anything. Refuses the whole batch (IL001) if a run's fence or a command's claim moved on,
-- (IL002) if an audit head did; the caller sorts it out.
create or replace function settle(batch jsonb) returns void language plpgsql as $$
declare moved text; touched integer;
begin
    perform set_config('interlock.orgs', batch ->> 'orgs', true);

    -- Always the log's head first and the runs after it, each in order: two processes never wait for each other in a circle.
    if batch ? 'heads' then
        if jsonb_array_length(batch -> 'heads') > 1 then
            perform from audit_heads join jsonb_to_recordset(batch -> 'heads') as h(org_id text) using (org_id)
                order by audit_heads.org_id for update of audit_heads;
        end if;
        update audit_heads set seq = h.seq, hash = h.hash
            from jsonb_to_recordset(batch -> 'heads') as h(org_id text, expected bigint, seq bigint, hash text)
            where audit_heads.org_id = h.org_id and audit_heads.seq = h.expected;
        get diagnostics touched = row_count;
        if touched <> jsonb_array_length(batch -> 'heads') then
            raise exception 'audit head moved' using errcode = 'IL002';
        end if;
        insert into audit (org_id, seq, event_id, entry, prev_hash, hash, key_id, signature)
            select org_id, seq, event_id, entry, prev_hash, hash, key_id, signature
            from jsonb_to_recordset(batch -> 'audit') as a(org_id text, seq bigint, event_id text, entry jsonb,
                prev_hash text, hash text, key_id text, signature text);
    end if;

    if batch ?| array['fences', 'new_signals', 'new_claims', 'places', 'requeued', 'finished'] then
        perform from queue where queue.run_id in (
                select l.run_id from jsonb_to_recordset(
                    coalesce(batch -> 'fences', '[]') || coalesce(batch -> 'new_signals', '[]') || coalesce(batch -> 'new_claims', '[]')
                        || coalesce(batch -> 'places', '[]') || coalesce(batch -> 'requeued', '[]')
                        || coalesce(batch -> 'finished', '[]')) as l(run_id text))
            order by queue.run_id for update;
    end if;
    if batch ? 'fences' then
        select string_agg(f.run_id, ',') into moved
            from jsonb_to_recordset(batch -> 'fences') as f(run_id text, fence bigint)
            where not exists (select from queue where queue.run_id = f.run_id and queue.fence = f.fence);
        if moved is not null then
            raise exception 'lease lost' using errcode = 'IL001', detail = moved;
        end if;
    end if;

    -- As fences, where single commands are leased: the claim is still the writer's, and nobody has done the command since.
    if batch ? 'claims' then
        perform from claims join jsonb_to_recordset(batch -> 'claims') as c(run_id text, command text) using (run_id, command)
            order by claims.run_id, claims.command for update of claims;
        select string_agg(c.run_id, ',') into moved
            from jsonb_to_recordset(batch -> 'claims') as c(run_id text, command text, fence bigint)
            where not exists (select from claims where claims.run_id = c.run_id and claims.command = c.command
                and claims.fence = c.fence and claims.event is null);
        if moved is not null then
            raise exception 'claim lost' using errcode = 'IL001', detail = moved;
        end if;
    end if;
    -- A run that its engine heard was brought back: dead, it left the queue. Its fence begins above all that it ever had.
    if batch ? 'revived' then
        insert into queue (run_id, org_id, workflow, engine, priority, available_at, fence)
            select runs.run_id, runs.org_id, runs.workflow, runs.engine, runs.priority, 'infinity', (extract(epoch from now()) * 1000)::bigint
            from jsonb_to_recordset(batch -> 'revived') as r(run_id text) join runs using (run_id)
            where runs.status = 'dead'
            on conflict (run_id) do nothing;
    end if;

    -- A run that is over has no row in the queue, which is locked above, so its end and a claim never miss each other.
    if batch ? 'new_claims' then
        insert into claims (run_id, command, org_id, fence) select run_id, command, org_id, fence
            from jsonb_to_recordset(batch -> 'new_claims') as c(run_id text, command text, org_id text, fence bigint)
            where exists (select from queue where queue.run_id = c.run_id)
            order by run_id, command
            on conflict (run_id, command) do update set fence = excluded.fence
                where claims.fence < excluded.fence and claims.event is null;
        get diagnostics touched = row_count;
        if touched <> jsonb_array_length(batch -> 'new_claims') then
            raise exception 'claimed, done, or over' using errcode = 'IL001';
        end if;
    end if;

    if batch ? 'artifacts' then
        insert into artifacts (org_id, digest, size, subjects, ciphertext, object)
            select org_id, digest, size, subjects, decode(ciphertext, 'base64'), object
            from jsonb_to_recordset(batch -> 'artifacts')
                as a(org_id text, digest text, size bigint, subjects text[], ciphertext text, object text)
            order by org_id, digest -- batches with the same values in them wait for each other here
            on conflict do nothing;
    end if;

    if batch ? 'new_runs' then
        insert into runs (run_id, org_id, workflow, version, principal, idempotency_key, input, vault, flags, trace_id, span_id,
                engine, priority)
            select run_id, org_id, workflow, version, principal, idempotency_key, input, vault, flags, trace_id, span_id,
                coalesce(engine, 'postgres'), coalesce(priority, 0)
            from jsonb_to_recordset(batch -> 'new_runs') as r(run_id text, org_id text, workflow text, version text, principal jsonb,
                idempotency_key text, input jsonb, vault jsonb, flags text[], trace_id text, span_id text, engine text, priority smallint);
        insert into queue (run_id, org_id, workflow, engine, priority)
            select run_id, org_id, workflow, coalesce(engine, 'postgres'), coalesce(priority, 0)
            from jsonb_to_recordset(batch -> 'new_runs')
                as r(run_id text, org_id text, workflow text, engine text, priority smallint);
        perform pg_notify('interlock_queue', '');
    end if;

    if batch ? 'new_vaults' then
        insert into run_vaults (org_id, run_id, vault) select org_id, run_id, vault
            from jsonb_to_recordset(batch -> 'new_vaults') as v(org_id text, run_id text, vault jsonb);
    end if;

    if batch ? 'journal' then
        insert into journal (run_id, seq, org_id, event) select run_id, seq, org_id, event
            from jsonb_to_recordset(batch -> 'journal') as j(run_id text, seq integer, org_id text, event jsonb);
    end if;

    -- The same without a lease: two that write the same event meet at its key, and the second is refused.
    if batch ? 'recorded' then
        insert into journal (run_id, seq, org_id, event) select run_id, seq, org_id, event
            from jsonb_to_recordset(batch -> 'recorded') as j(run_id text, seq integer, org_id text, event jsonb);
    end if;

    if batch ? 'runs' then
        update runs set status = r.status, reason = coalesce(r.reason, runs.reason), output = coalesce(r.output, runs.output),
                input_tokens = r.input_tokens, output_tokens = r.output_tokens, usd = r.usd, steps = r.steps,
                started_at = coalesce(runs.started_at, now()),
                finished_at = case when r.finished then now() end
            from jsonb_to_recordset(batch -> 'runs') as r(run_id text, status text, reason text, output jsonb,
                input_tokens bigint, output_tokens bigint, usd double precision, steps integer, finished boolean)
            where runs.run_id = r.run_id;
    end if;

    if batch ? 'effects' then
        insert into effects (run_id, step, org_id, tool, idempotency_key, status, attempt, input, output)
            select run_id, step, org_id, tool, idempotency_key, status, attempt, input, output
            from jsonb_to_recordset(batch -> 'effects') as e(run_id text, step text, org_id text, tool text,
                idempotency_key text, status text, attempt integer, input jsonb, output jsonb)
            on conflict (run_id, step) do update set status = excluded.status, attempt = excluded.attempt,
                -- Intended anew, it may be with other arguments: a person edited them.
                idempotency_key = case when excluded.status = 'intended' then excluded.idempotency_key else effects.idempotency_key end,
                input = case when excluded.status = 'intended' then excluded.input else effects.input end,
                output = coalesce(excluded.output, effects.output), updated_at = now();
    end if;

    if batch ? 'done_claims' then
        update claims set event = d.event, tokens = d.tokens, usd = d.usd
            from jsonb_to_recordset(batch -> 'done_claims') as d(run_id text, command text, event jsonb, tokens bigint, usd double precision)
            where claims.run_id = d.run_id and claims.command = d.command;
    end if;

    -- Whose outcome is in the run's row now, so it has nothing set aside any more.
    if batch ? 'settled_claims' then
        update claims set tokens = null, usd = null
            from jsonb_to_recordset(batch -> 'settled_claims') as s(run_id text, command text)
            where claims.run_id = s.run_id and claims.command = s.command and (claims.tokens is not null or claims.usd is not null);
    end if;

    if batch ? 'new_reviews' then
        insert into reviews (review_id, org_id, run_id, step, purpose, title, role, show)
            select review_id, org_id, run_id, step, purpose, title, role, show
            from jsonb_to_recordset(batch -> 'new_reviews') as v(review_id text, org_id text, run_id text, step text,
                purpose text, title text, role text, show jsonb);
    end if;

    if batch ? 'closed_reviews' then
        update reviews set status = 'closed', decided_at = now()
            from jsonb_to_recordset(batch -> 'closed_reviews') as c(run_id text, step text)
            where reviews.run_id = c.run_id and reviews.step = c.step and reviews.status = 'open';
    end if;

    if batch ? 'decided_reviews' then
        update reviews set status = d.status, decided_by = d.decided_by, note = d.note, decided_at = now()
            from jsonb_to_recordset(batch -> 'decided_reviews') as d(review_id text, status text, decided_by text, note text)
            where reviews.review_id = d.review_id and reviews.status = 'open';
        get diagnostics touched = row_count;
        if touched <> jsonb_array_length(batch -> 'decided_reviews') then
            raise exception 'review is not open' using errcode = 'IL005';
        end if;
    end if;

    if batch ? 'results' then
        insert into results (org_id, key, output) select distinct on (org_id, key) org_id, key, output
            from jsonb_to_recordset(batch -> 'results') as r(org_id text, key text, output jsonb)
            order by org_id, key
            on conflict (org_id, key) do update set output = excluded.output, created_at = now();
    end if;

    if batch ? 'new_dead_letters' then
        insert into dead_letters (dead_letter_id, org_id, run_id, step, purpose, code, reason)
            select dead_letter_id, org_id, run_id, step, purpose, code, reason
            from jsonb_to_recordset(batch -> 'new_dead_letters') as l(dead_letter_id text, org_id text, run_id text, step text,
                purpose text, code text, reason text)
            on conflict do nothing;
    end if;

    if batch ? 'closed_dead_letters' then
        update dead_letters set status = 'closed', decided_at = now()
            from jsonb_to_recordset(batch -> 'closed_dead_letters') as c(run_id text, step text)
            where dead_letters.run_id = c.run_id and dead_letters.step = c.step and dead_letters.status = 'open';
    end if;

    if batch ? 'decided_dead_letters' then
        update dead_letters set status = d.status, decided_by = d.decided_by, note = d.note, new_run = d.new_run, decided_at = now()
            from jsonb_to_recordset(batch -> 'decided_dead_letters')
                as d(dead_letter_id text, status text, decided_by text, note text, new_run text)
            where dead_letters.dead_letter_id = d.dead_letter_id and dead_letters.status = 'open';
        get diagnostics touched = row_count;
        if touched <> jsonb_array_length(batch -> 'decided_dead_letters') then
            raise exception 'dead letter is not open' using errcode = 'IL005';
        end if;
    end if;

    -- One id counts once: the table's key refuses the second of two signals that were sent at the same moment.
    if batch ? 'signal_ids' then
        insert into signal_ids (run_id, signal_id, org_id, name) select run_id, signal_id, org_id, name
            from jsonb_to_recordset(batch -> 'signal_ids') as i(run_id text, signal_id text, org_id text, name text);
    end if;

    -- Tells runs something (a decision, a cancellation) and wakes whoever drives them, or will.
    if batch ? 'new_signals' then
        insert into signals (org_id, run_id, event) select org_id, run_id, event
            from jsonb_to_recordset(batch -> 'new_signals') as s(org_id text, run_id text, event jsonb);
        -- A run that is dead left the queue; a person may bring it back. Its fence begins above all that it ever had.
        insert into queue (run_id, org_id, workflow, engine, priority, fence)
            select runs.run_id, runs.org_id, runs.workflow, runs.engine, runs.priority, (extract(epoch from now()) * 1000)::bigint
            from jsonb_to_recordset(batch -> 'new_signals') as s(run_id text) join runs using (run_id)
            where runs.status = 'dead'
            on conflict (run_id) do nothing;
        update queue set available_at = least(available_at, now())
            from jsonb_to_recordset(batch -> 'new_signals') as s(run_id text) where queue.run_id = s.run_id;
        perform pg_notify('interlock_queue', s.run_id) from jsonb_to_recordset(batch -> 'new_signals') as s(run_id text);
    end if;

    -- Drives that broke off. A parked run is left alone until somebody decides about its dead letter, or tells it something; one that
    -- killed its workers is still suspect then.
    if batch ? 'crashed' then
        update queue set crashes = crashes + 1, crash_streak = case when c.parked then least(crash_streak, 3) else crash_streak end,
                worker = case when c.parked then null else worker end,
                lease_until = case when c.parked then null else lease_until end,
                available_at = case when c.parked then 'infinity' else available_at end
            from jsonb_to_recordset(batch -> 'crashed') as c(run_id text, parked boolean) where queue.run_id = c.run_id;
    end if;

    if batch ? 'requeued' then
        update queue set crashes = 0, crash_streak = 0, available_at = least(available_at, now())
            from jsonb_to_recordset(batch -> 'requeued') as r(run_id text) where queue.run_id = r.run_id;
        perform pg_notify('interlock_queue', r.run_id) from jsonb_to_recordset(batch -> 'requeued') as r(run_id text);
    end if;

    if batch ? 'used_signals' then
        delete from signals using jsonb_to_recordset(batch -> 'used_signals') as s(signal_id bigint)
            where signals.signal_id = s.signal_id;
    end if;

    -- Told to an engine that keeps its runs itself; the row goes with the record of it, and until then it is told again now and then.
    if batch ? 'forwarded_at' then
        update signals set forwarded_at = now() from jsonb_to_recordset(batch -> 'forwarded_at') as h(signal_id bigint)
            where signals.signal_id = h.signal_id;
    end if;

    if batch ? 'outbox' then
        insert into outbox (org_id, topic, payload) select org_id, topic, payload
            from jsonb_to_recordset(batch -> 'outbox') as o(org_id text, topic text, payload jsonb);
    end if;

    -- Calls in a batch that nobody waits for, one by one or with their whole run: what is not handed in by now never is, answers that
    -- still come are nobody's. A batch goes with the last of its calls.
    if batch ?| array['let_go', 'finished'] then
        with orphaned as (
            select l.run_id, l.step from jsonb_to_recordset(coalesce(batch -> 'let_go', '[]')) as l(run_id text, step text)
            union all select d.run_id, null from jsonb_to_recordset(coalesce(batch -> 'finished', '[]')) as d(run_id text)
        ), gone as (
            delete from batched_calls c using orphaned n
                where c.run_id = n.run_id and (n.step is null or c.step = n.step and c.status <> 'submitted')
                returning c.call_id, c.batch_id)
        delete from batches b where b.batch_id in (select g.batch_id from gone g) and not exists (
            select from batched_calls c where c.batch_id = b.batch_id and c.call_id not in (select g.call_id from gone g));
    end if;

    if batch ? 'finished' then
        -- A run that is dead and was told something meanwhile, which may bring it back, stays for whoever takes it up next.
        update queue set available_at = now(),
                worker = case when queue.engine = 'postgres' or queue.worker = queue.engine then null else worker end,
                lease_until = case when queue.engine = 'postgres' or queue.worker = queue.engine then null else lease_until end
            from jsonb_to_recordset(batch -> 'finished') as d(run_id text) join runs using (run_id)
            where queue.run_id = d.run_id and runs.status = 'dead'
                and exists (select from signals where signals.run_id = d.run_id);
        delete from queue using jsonb_to_recordset(batch -> 'finished') as d(run_id text) join runs using (run_id)
            where queue.run_id = d.run_id
                and not (runs.status = 'dead' and exists (select from signals where signals.run_id = d.run_id));
        delete from signals using jsonb_to_recordset(batch -> 'finished') as d(run_id text) join runs using (run_id)
            where signals.run_id = d.run_id and runs.status <> 'dead'; -- told too late
        -- A dead run may be taken up again, and nobody from before its death may then have a command to himself.
        delete from claims using jsonb_to_recordset(batch -> 'finished') as d(run_id text)
            where claims.run_id = d.run_id and not exists (select from runs where runs.run_id = d.run_id and runs.status = 'dead');
        update dead_letters set status = 'closed', decided_at = now()
            from jsonb_to_recordset(batch -> 'finished') as d(run_id text)
            where dead_letters.run_id = d.run_id and dead_letters.step = '' and dead_letters.purpose = 'parked_run'
                and dead_letters.status = 'open';
    end if;

    -- An engine that keeps its runs itself: whether one has a place among the runs at once. A bridge that has it just now goes first.
    if batch ? 'places' then
        update queue set worker = case when p.held then queue.engine end,
                lease_until = case when p.held then 'infinity'::timestamptz end
            from jsonb_to_recordset(batch -> 'places') as p(run_id text, held boolean)
            where queue.run_id = p.run_id and (queue.worker is null or queue.worker = queue.engine);
    end if;

    -- A signal that came in while the run was being put to sleep keeps it awake, unless handing it on has just `failed`. One `kept` by
    -- its engine has a place there: for good if it works, for a moment if it only waits and was told something, of which nothing may come.
    if batch ? 'released' then
        update queue set worker = case when w.kept then queue.engine end,
                lease_until = case when w.kept then case
                    when exists (select from runs where runs.run_id = queue.run_id and runs.status in ('queued', 'running', 'compensating'))
                    then 'infinity' else now() + interval '30 seconds' end end,
                crashes = 0, crash_streak = 0, available_at = case
                when w.failed is not true and exists (
                    select from signals where signals.run_id = queue.run_id and signals.forwarded_at is null) then now()
                when w.failed is not true and exists (select from signals where signals.run_id = queue.run_id)
                    then now() + interval '60 seconds'
                else coalesce(to_timestamp(w.wake_at), 'infinity'::timestamptz) end
            from jsonb_to_recordset(batch -> 'released') as w(run_id text, wake_at double precision, kept boolean, failed boolean)
            where queue.run_id = w.run_id;
    end if;

    perform notify_followers(batch);
end $$;
