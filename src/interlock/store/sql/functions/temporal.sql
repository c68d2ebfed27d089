-- Runs that an engine keeps itself (Temporal), leased under its name. `settle_v1` gives and takes their places.

-- To the bridge: such runs that were told something. They have a place already, so no limit applies.
drop function if exists claim_signalled(text, double precision, integer, text);
create or replace function claim_signalled(claimant text, lease_seconds double precision, wanted integer, engine text,
        oldest integer, newest integer)
    returns table (run_id text, org_id text, fence bigint)
    language sql security definer set search_path = public, pg_temp as $$
    with signalled as materialized (
        select q.run_id from queue q where q.engine = claim_signalled.engine and q.worker = q.engine and q.available_at <= now()
                and q.machine between oldest and newest
            order by q.available_at limit wanted for update skip locked)
    update queue q set worker = claimant, fence = q.fence + 1, lease_until = now() + make_interval(secs => lease_seconds)
        from signalled where q.run_id = signalled.run_id returning q.run_id, q.org_id, q.fence
$$;

-- Sets aside what a command's call may use, unless that is more than its run has left: what is in the run's row, with what its
-- other commands have set aside, or have used and the row does not yet say. Who holds the row of the queue is alone in counting.
-- Null in `wanted_*` is nothing, in `limit_*` no limit. Gives what the others have; refuses (IL001) a claim that is not the caller's any more.
create or replace function reserve_claim(for_run text, for_command text, claimed bigint, wanted_tokens bigint, wanted_nano_usd bigint,
        limit_tokens bigint, limit_nano_usd bigint, out fits boolean, out used_tokens bigint, out used_nano_usd bigint)
    language plpgsql as $$
begin
    perform from queue where queue.run_id = for_run for update;
    select r.input_tokens + r.output_tokens + coalesce(sum(c.tokens), 0), r.nano_usd + coalesce(sum(c.nano_usd), 0)
            into used_tokens, used_nano_usd
        from runs r left join claims c on c.run_id = r.run_id and c.command <> for_command
        where r.run_id = for_run group by r.run_id;
    fits := (limit_tokens is null or used_tokens + wanted_tokens <= limit_tokens)
        and (limit_nano_usd is null or used_nano_usd + wanted_nano_usd <= limit_nano_usd);
    update claims set tokens = case when fits then wanted_tokens end, nano_usd = case when fits then wanted_nano_usd end
        where claims.run_id = for_run and claims.command = for_command and claims.fence = claimed and claims.event is null;
    if not found then
        raise exception 'claim lost' using errcode = 'IL001', detail = for_run;
    end if;
end $$;
