-- Who drives which run: the queue and its leases.
-- Run as the schema's owner: they look across organisations and return ids only.

create or replace function journal_length(of_run text) returns integer language sql stable set search_path = public, pg_temp as $$
    select coalesce(max(seq), 0) from journal where run_id = of_run
$$;

-- Gives runs to a worker: fairly over organisations, in each fairly over its workflows (the lane with the fewest leased runs comes
-- first, chance decides between equals), in each by priority, then those already begun, then by age; within the quotas.
-- Reads the first few rows of each lane, so its cost does not grow with how many wait.
-- A run with a crash streak of three is suspected of killing its workers: the worker that gets it drives no other run (decision
-- 0008). With a longer streak it is claimed like any other, to be parked instead of driven.
-- Only runs of the machine versions from `oldest` to `newest`, which the worker can drive; the others wait for another one.
drop function if exists claim_runs(text, double precision, integer);
drop function if exists claim_runs(text, double precision, integer, text);
drop function if exists claim_runs(text, double precision, integer, text, integer, integer);
create function claim_runs(claimant text, lease_seconds double precision, wanted integer, engine text default 'postgres',
        oldest integer default 1, newest integer default 1)
    returns table (run_id text, org_id text, fence bigint, crash_streak smallint)
    language plpgsql security definer set search_path = public, pg_temp
    -- Planning takes longer than a claim, so there is one plan; made while the queue is empty, it must not read it whole later.
    set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
declare held quotas[]; pool bigint := wanted + 4; missing integer := wanted; got text[]; picked bigint; suspect text;
begin
    -- Runs whose worker fell silent go back to their lanes. If it is only slow, the fence will stop it. If it died and the run
    -- had got no further under it, that counts against the run; on other engines the lease is not for driving.
    with silent as materialized (
        select e.run_id, e.worker, e.leased_seq < journal_length(e.run_id) as moved,
            -- A run driven by Temporal itself keeps its place, whether or not the bridge that had a signal for it is alive.
            e.engine <> 'postgres' and e.worker <> e.engine and exists (select from runs r where r.run_id = e.run_id
                and r.status in ('running', 'compensating')) as works,
            e.engine <> 'postgres' or e.leased_seq is null or exists (select from workers w where w.worker_id = e.worker
                and w.seen_at > now() - make_interval(secs => lease_seconds / 2)) as lives -- it speaks every third of a lease
        from queue e where e.engine = claim_runs.engine and e.worker is not null and e.lease_until < now()
        limit wanted for update of e skip locked)
    update queue set lost_fence = queue.fence, worker = case when s.works then queue.engine end, lease_until = case when s.works then 'infinity'::timestamptz end,
            crash_streak = case when s.moved then 0 when s.lives then queue.crash_streak else queue.crash_streak + 1 end,
            crashed_workers = case when s.moved or s.lives then queue.crashed_workers when queue.crash_streak = 0 then array[s.worker] else queue.crashed_workers || s.worker end,
            available_at = case when queue.crash_streak = 2 and not s.moved and not s.lives then now() else queue.available_at end
        from silent s where queue.run_id = s.run_id;
    if exists (select from queue h where h.worker = claimant and h.crash_streak = 3 and h.leased_seq = journal_length(h.run_id)) then
        return; -- alone with it until it has got further
    end if;
    if not exists (select from queue q where q.engine = claim_runs.engine and q.worker is null and q.available_at < 'infinity') then
        return;
    end if;

    -- Quotas of organisations and workflows with queued runs. Only the holder of their locks counts and claims; locks are always
    -- taken in this order, so that no deadlock is possible.
    select array_agg(h) into held from (
        select k.* from quotas k where k.scope in ('org', 'workflow') and exists (
                select from queue w where w.engine = claim_runs.engine and w.org_id = k.org_id
                    and (k.scope = 'org' or w.workflow = k.name) and w.worker is null and w.available_at < 'infinity')
            order by k.org_id, k.scope, k.name for update) h;
    if held is not null then
        delete from quota_uses u using unnest(held) h where (u.org_id, u.scope, u.name) = (h.org_id, h.scope, h.name)
            and u.at <= clock_timestamp() - make_interval(secs => h.per_seconds);
    end if;

    if not exists (select from queue h where h.worker = claimant) then
        select q.run_id into suspect from queue q
            where q.engine = claim_runs.engine and q.crash_streak = 3 and q.worker is null and q.available_at <= now()
                and q.machine between oldest and newest and not exists (select from unnest(held) h where h.org_id = q.org_id and (h.scope = 'org' or h.name = q.workflow)
                    and h.concurrency <= (select count(*) from queue l where l.worker is not null and l.org_id = h.org_id
                        and (h.scope = 'org' or l.workflow = h.name)))
            order by q.available_at limit 1 for update of q skip locked;
        if found then
            return query update queue set worker = claimant, fence = queue.fence + 1, leased_seq = journal_length(queue.run_id),
                    lease_until = now() + make_interval(secs => lease_seconds)
                where queue.run_id = suspect returning queue.run_id, queue.org_id, queue.fence, queue.crash_streak;
            return;
        end if;
    end if;

    while missing > 0 loop
        with recursive hop as ( -- from each lane, priority and age group to the next in the index, without reading what is between
            (select q.org_id, q.workflow, -q.priority as rank, (q.fence = 0)::integer as fresh from queue q
                where q.engine = claim_runs.engine and q.worker is null and q.available_at < 'infinity'
                order by q.org_id, q.workflow, (-q.priority), ((q.fence = 0)::integer) limit 1)
            union all
            select n.* from hop h cross join lateral (
                select q.org_id, q.workflow, -q.priority, (q.fence = 0)::integer from queue q
                where q.engine = claim_runs.engine and q.worker is null and q.available_at < 'infinity'
                    and (q.org_id, q.workflow, (-q.priority), ((q.fence = 0)::integer)) > (h.org_id, h.workflow, h.rank, h.fresh)
                order by q.org_id, q.workflow, (-q.priority), ((q.fence = 0)::integer) limit 1) n
        ), leased as materialized (
            select q.org_id, q.workflow, count(*) as runs from queue q where q.worker is not null group by q.org_id, q.workflow
        ), used as materialized (
            select h.org_id, h.scope, h.name, count(u.use_id) as starts from unnest(held) h
                left join quota_uses u on (u.org_id, u.scope, u.name) = (h.org_id, h.scope, h.name) group by 1, 2, 3
        ), rooms as materialized ( -- what the quotas leave; null is no limit
            select h.org_id, h.scope, h.name, h.rate - u.starts as starts,
                h.concurrency - coalesce((select sum(l.runs) from leased l
                    where l.org_id = h.org_id and (h.scope = 'org' or l.workflow = h.name)), 0) as runs
            from unnest(held) h join used u using (org_id, scope, name)
        ), orgs_now as materialized (
            select o.org_id, random() as dice, r.starts, r.runs, coalesce(sum(l.runs), 0) as load
            from (select distinct h.org_id from hop h) o left join leased l using (org_id)
                left join rooms r on r.org_id = o.org_id and r.scope = 'org'
            group by o.org_id, r.starts, r.runs
        ), lanes as materialized (
            select n.org_id, n.workflow, random() as dice, r.starts, r.runs, coalesce(l.runs, 0) as load
            from (select distinct h.org_id, h.workflow from hop h) n left join leased l using (org_id, workflow)
                left join rooms r on r.org_id = n.org_id and r.scope = 'workflow' and r.name = n.workflow
            -- A quota that came up since, and whose lock we therefore do not hold, has to wait for the next time.
            where not exists (select from quotas k where k.org_id = n.org_id and (k.scope = 'org' or k.scope = 'workflow' and k.name = n.workflow)
                and not exists (select from rooms r2 where (r2.org_id, r2.scope, r2.name) = (k.org_id, k.scope, k.name)))
        ), waiting as (
            select h.org_id, h.workflow, h.fresh, c.run_id,
                row_number() over (partition by h.org_id, h.workflow order by h.rank, h.fresh, c.available_at, c.run_id) as place
            from hop h cross join lateral (
                select q.run_id, q.available_at from queue q
                where q.engine = claim_runs.engine and q.org_id = h.org_id and q.workflow = h.workflow and (-q.priority) = h.rank
                    and ((q.fence = 0)::integer) = h.fresh and q.worker is null and q.available_at < 'infinity'
                    and q.available_at <= now() and q.crash_streak <> 3 and q.machine between oldest and newest
                order by q.available_at limit pool) c
        ), in_rate as ( -- the limits one after the other, and places counted anew in between: what one refuses takes no other's room
            select w.*, l.dice, l.load, l.runs, l.starts, sum(w.fresh) over (partition by w.org_id, w.workflow order by w.place) as start
            from waiting w join lanes l using (org_id, workflow)
        ), in_lane as (
            select r.*, row_number() over (partition by r.org_id, r.workflow order by r.place) as turn
            from in_rate r where r.fresh = 0 or r.starts is null or r.start <= r.starts
        ), of_org as (
            select i.org_id, i.run_id, i.fresh,
                sum(i.fresh) over (partition by i.org_id order by i.load + i.turn, i.dice, i.run_id) as start,
                row_number() over (partition by i.org_id order by i.load + i.turn, i.dice, i.run_id) as place
            from in_lane i where i.runs is null or i.turn <= i.runs
        ), in_org as (
            select f.run_id, o.load, o.dice, o.runs, row_number() over (partition by f.org_id order by f.place) as turn
            from of_org f join orgs_now o using (org_id) where f.fresh = 0 or o.starts is null or f.start <= o.starts
        ), pick as materialized (
            select i.run_id, i.load + i.turn as place, i.dice from in_org i where i.runs is null or i.turn <= i.runs
            order by 2, 3 limit pool
        ), taken as materialized ( -- what another claimant has locked is passed over, and the next takes its place
            select q.run_id from pick p join queue q using (run_id) where q.worker is null and q.available_at <= now()
            order by p.place, p.dice limit missing for update of q skip locked
        ), claimed as (
            update queue set worker = claimant, fence = queue.fence + 1, leased_seq = journal_length(queue.run_id),
                lease_until = now() + make_interval(secs => lease_seconds)
            from taken where queue.run_id = taken.run_id returning queue.run_id, queue.org_id, queue.workflow, queue.fence
        ), started as (
            insert into quota_uses (org_id, scope, name, holder, at)
            select c.org_id, h.scope, h.name, c.run_id, clock_timestamp() from claimed c join unnest(held) h
                on h.org_id = c.org_id and (h.scope = 'org' or h.name = c.workflow) where c.fence = 1 and h.rate is not null
        )
        select array_agg(c.run_id), (select count(*) from pick) into got, picked from claimed c;

        return query select q.run_id, q.org_id, q.fence, q.crash_streak from queue q where q.run_id = any(got);
        missing := missing - coalesce(cardinality(got), 0);
        exit when picked < pool; -- that was everything
        pool := 8 * pool; -- others are claiming the same rows: look further
    end loop;
end $$;

-- Whether a run has to be driven alone, found no idle worker, and this busy one is to make room for it: one worker for one run.
-- Not for one that the quotas would keep from being claimed then, when this worker's own runs have left their places.
drop function if exists take_exclusive_slot(text, double precision, text);
create or replace function take_exclusive_slot(claimant text, lease_seconds double precision, engine text, oldest integer,
        newest integer) returns boolean
    language plpgsql security definer set search_path = public, pg_temp as $$
#variable_conflict use_column
begin
    update queue set room_by = claimant, room_until = now() + make_interval(secs => lease_seconds)
        where queue.run_id = (
            select q.run_id from queue q where q.engine = take_exclusive_slot.engine and q.crash_streak = 3 and q.worker is null
                and q.machine between oldest and newest and q.available_at < now() - interval '2 seconds' -- an idle worker looks every second
                and (q.room_by is null or q.room_by = claimant or q.room_until < now())
                and not exists (select from quotas k where k.org_id = q.org_id
                    and (k.scope = 'org' or k.scope = 'workflow' and k.name = q.workflow)
                    and k.concurrency <= (select count(*) from queue l where l.worker <> claimant and l.org_id = k.org_id
                        and (k.scope = 'org' or l.workflow = k.name)))
            order by q.available_at limit 1 for update skip locked);
    return found;
end $$;

-- Those of them that were told something: the net under the notification, which may have been missed.
drop function if exists renew_leases(text, double precision, text[]);
create function renew_leases(claimant text, lease_seconds double precision, driven text[]) returns setof text
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    perform from queue where worker = claimant and run_id = any(driven) order by run_id for update;
    update queue set lease_until = now() + make_interval(secs => lease_seconds)
        where worker = claimant and run_id = any(driven);
    return query select distinct s.run_id from signals s join queue q using (run_id)
        where q.worker = claimant and s.run_id = any(driven);
end $$;

create or replace function release_leases(claimant text) returns void
    language sql security definer set search_path = public, pg_temp as $$
    update queue set worker = null, lease_until = null, available_at = least(available_at, now())
        where run_id in (select run_id from queue where worker = claimant order by run_id for update) and worker = claimant
$$;

create or replace function runs_due(for_engine text, oldest integer, newest integer, most bigint) returns bigint
    language sql stable security definer set search_path = public, pg_temp as $$
    select count(*) from (select from queue q where q.engine = for_engine and q.worker is null and q.available_at < 'infinity'
        and q.available_at <= now() and q.crash_streak <> 3 and q.machine between oldest and newest limit most) due
$$;

create or replace function queue_depth() returns bigint language sql stable security definer set search_path = public, pg_temp as $$
    select count(*) from queue where available_at <= now()
$$;

