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
