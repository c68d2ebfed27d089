-- Delivery of outbox events to receivers.
-- Run as the schema's owner: they look across organisations.

-- Takes the right to send to a receiver, or prolongs it; false if another process has it. The right ends `seconds` from now, so a
-- process that died or was stopped is followed by another. Receivers that no process was configured with for a week are forgotten,
-- with their events.
create or replace function hold_sink(wanted text, claimant text, seconds double precision) returns boolean
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    insert into event_sinks (sink) values (wanted) on conflict do nothing;
    update event_sinks set seen_at = now(), holder = claimant, held_until = clock_timestamp() + make_interval(secs => seconds)
        where sink = (select e.sink from event_sinks e where e.sink = wanted
            and (e.holder = claimant or e.held_until < clock_timestamp()) for update skip locked);
    if not found then
        return false;
    end if;
    delete from event_sinks where seen_at < now() - interval '7 days';
    return true;
end $$;

create or replace function release_sinks(claimant text) returns void
    language sql security definer set search_path = public, pg_temp as $$
    update event_sinks set holder = '', held_until = '-infinity' where holder = claimant
$$;

-- Moves outbox rows into one delivery for each receiver; how many rows. One process at a time: two would each commit a part of a
-- run's events, and the later part might be sent first. `sinks` are the caller's receivers: all are registered before the first move.
create or replace function spread_outbox(sinks text[], most integer) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
declare moved integer;
begin
    if not pg_try_advisory_xact_lock(1892619) then
        return 0;
    end if;
    insert into event_sinks (sink) select unnest(sinks) order by 1 on conflict do nothing;
    with taken as (
        delete from outbox where outbox_id in (select o.outbox_id from outbox o order by o.outbox_id limit most) returning *
    ), made as (
        insert into deliveries (sink, event_id, org_id, lane, topic, payload, created_at)
            select e.sink, t.outbox_id, t.org_id, coalesce(t.payload ->> 'run_id', ''), t.topic, t.payload, t.created_at
            from taken t cross join event_sinks e
    ) select count(*) into moved from taken;
    return moved;
end $$;

-- The next events for a receiver, for the process that may send to it. An event waits while an earlier one of its lane does.
create or replace function due_deliveries(wanted text, claimant text, most integer)
    returns table (event_id bigint, org_id text, lane text, topic text, payload jsonb, created_at timestamptz)
    language sql stable security definer set search_path = public, pg_temp as $$
    select d.event_id, d.org_id, d.lane, d.topic, d.payload, d.created_at from deliveries d
        where d.sink = wanted and d.status = 'pending' and d.next_try <= now()
            and exists (select from event_sinks e where e.sink = wanted and e.holder = claimant and e.held_until > clock_timestamp())
            and not exists (select from deliveries earlier where earlier.sink = d.sink and earlier.org_id = d.org_id
                and earlier.lane = d.lane and earlier.event_id < d.event_id
                and earlier.status = 'pending' and earlier.tries > 0 and earlier.next_try > now())
        order by d.event_id limit most
$$;

-- Forgets events that the receiver took; false if another process may send to it by now, which sends them again.
create or replace function delivered(wanted text, claimant text, events bigint[]) returns boolean
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    update event_sinks set accepted_at = clock_timestamp() where sink = wanted and holder = claimant;
    if not found then
        return false;
    end if;
    delete from deliveries where sink = wanted and event_id = any(events);
    return true;
end $$;

-- Puts an event off, or refuses it for good: if `refuse`, or after `most` failures between which the receiver took other events.
-- The status that it has now; null if the caller may not send to this receiver any more.
create or replace function delivery_failed(wanted text, claimant text, event bigint, why text, refuse boolean, most integer,
        first_wait double precision, longest_wait double precision) returns text
    language plpgsql security definer set search_path = public, pg_temp as $$
declare accepted timestamptz; outcome text;
begin
    select accepted_at into accepted from event_sinks where sink = wanted and holder = claimant for update;
    if not found then
        return null;
    end if;
    update deliveries d set tries = d.tries + 1, failed_at = clock_timestamp(), reason = why,
            attempts = case when d.failed_at is null or accepted > d.failed_at then d.attempts + 1 else d.attempts end,
            next_try = clock_timestamp() + make_interval(secs => least(longest_wait, first_wait * 2.0 ^ least(d.tries, 20)))
        where d.sink = wanted and d.event_id = event;
    update deliveries d set status = 'refused'
        where d.sink = wanted and d.event_id = event and (refuse or d.attempts >= most);
    select status into outcome from deliveries d where d.sink = wanted and d.event_id = event;
    return outcome;
end $$;

-- Events that receivers refused, all or one, oldest first.
drop function if exists refused_deliveries(integer);
create or replace function refused_deliveries(event bigint, most integer) returns table (sink text, event_id bigint, org_id text, topic text,
        run_id text, reason text, tries integer, created_at timestamptz, failed_at timestamptz)
    language sql stable security definer set search_path = public, pg_temp as $$
    select d.sink, d.event_id, d.org_id, d.topic, d.lane, d.reason, d.tries, d.created_at, d.failed_at
        from deliveries d where d.status = 'refused' and (event is null or d.event_id = event) order by d.event_id, d.sink limit most
$$;

drop function if exists requeue_deliveries(bigint);
