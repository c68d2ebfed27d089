-- Reservations of budgets: what the calls of a scope, such as a run, may use while they are under way. See budget/reservations.py.

-- Sets aside what a call may use, unless that is more than its scope has left: what the run's row says, with the other reservations.
-- The row of the queue is locked, so one caller counts at a time. Reservations of calls that have ended (`finished`) are
-- updated first. Null in `limit_*` is no limit. Gives what is used and reserved without the wanted amount; refuses (IL001) a lease,
-- of the run or of one command, that another worker holds by now.
create or replace function reserve(for_org text, for_run text, for_command text, leased bigint, in_scope text, for_holder text,
        held bigint, wanted_tokens bigint, wanted_nano_usd bigint, limit_tokens bigint, limit_nano_usd bigint, finished jsonb,
        out fits boolean, out used_tokens bigint, out used_nano_usd bigint)
    language plpgsql as $$
declare written integer;
begin
    perform from queue where queue.run_id = for_run and (for_command is not null or queue.fence = leased) for update;
    if not found or (for_command is not null and not exists (select from claims
            where claims.run_id = for_run and claims.command = for_command and claims.fence = leased and claims.event is null)) then
        raise exception 'lease lost' using errcode = 'IL001', detail = for_run;
    end if;
    if jsonb_array_length(finished) > 0 then
        written := settle_v1_used_reservations(finished);
    end if;
    if held <> 0 then
        -- An earlier call of this holder has ended, and a crash lost its outcome: its usage stays, under a fence of its own.
        with lost as (
            delete from reservations o where o.scope = in_scope and o.holder = for_holder and o.fence = 0 returning o.*
        )
        insert into reservations select scope, holder, -held, org_id, tokens, nano_usd, until from lost
            on conflict (scope, holder, fence, org_id)
            do update set tokens = reservations.tokens + excluded.tokens, nano_usd = reservations.nano_usd + excluded.nano_usd;
    end if;
    select r.input_tokens + r.output_tokens + coalesce(sum(o.tokens), 0), r.nano_usd + coalesce(sum(o.nano_usd), 0)
            into used_tokens, used_nano_usd
        from runs r left join reservations o on o.scope = in_scope and o.until > now() and (o.holder, o.fence) <> (for_holder, held)
        where r.run_id = for_run group by r.run_id;
    fits := (limit_tokens is null or used_tokens + wanted_tokens <= limit_tokens)
        and (limit_nano_usd is null or used_nano_usd + wanted_nano_usd <= limit_nano_usd);
    if fits then
        insert into reservations (scope, holder, fence, org_id, tokens, nano_usd)
            values (in_scope, for_holder, held, for_org, wanted_tokens, wanted_nano_usd)
            on conflict (scope, holder, fence, org_id) do update set tokens = excluded.tokens, nano_usd = excluded.nano_usd;
    end if;
end $$;

create or replace function settle_v1_used_reservations(used jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update reservations set tokens = u.tokens, nano_usd = u.nano_usd, fence = 0
        from jsonb_to_recordset(used) as u(scope text, holder text, fence bigint, tokens bigint, nano_usd bigint)
        where reservations.scope = u.scope and reservations.holder = u.holder and reservations.fence in (u.fence, 0);
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_settled_reservations(settled jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    delete from reservations using jsonb_to_recordset(settled) as s(scope text, holder text, fence bigint)
        where reservations.scope = s.scope and reservations.holder = s.holder and reservations.fence in (s.fence, 0);
    get diagnostics touched = row_count;
    return touched;
end $$;
