-- Who drives which run: the queue and its leases.
-- Run as the schema's owner: they look across organisations and return ids only.

create or replace function claim_runs(claimant text, lease_seconds double precision, wanted integer)
    returns table (run_id text, org_id text, fence bigint)
    language sql security definer set search_path = public, pg_temp as $$
    update queue set worker = claimant, fence = queue.fence + 1, lease_until = now() + make_interval(secs => lease_seconds)
        where queue.run_id in (
            select q.run_id from queue q
            where q.available_at <= now() and (q.worker is null or q.lease_until < now())
            order by q.available_at limit wanted for update skip locked)
        returning queue.run_id, queue.org_id, queue.fence
$$;

create or replace function renew_leases(claimant text, lease_seconds double precision, driven text[]) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
declare renewed integer;
begin
    perform from queue where worker = claimant and run_id = any(driven) order by run_id for update;
    update queue set lease_until = now() + make_interval(secs => lease_seconds)
        where worker = claimant and run_id = any(driven);
    get diagnostics renewed = row_count;
    return renewed;
end $$;

create or replace function release_leases(claimant text) returns void
    language sql security definer set search_path = public, pg_temp as $$
    update queue set worker = null, lease_until = null, available_at = least(available_at, now())
        where run_id in (select run_id from queue where worker = claimant order by run_id for update) and worker = claimant
$$;

create or replace function queue_depth() returns bigint language sql stable security definer set search_path = public, pg_temp as $$
    select count(*) from queue where available_at <= now()
$$;

