-- Quotas of tools; those of organisations and workflows hold in claim_runs.

-- A slot for one call: null if it was taken (or there is no quota), else the seconds after which to ask again.
create or replace function take_call(org text, tool text, by_whom text, lease_seconds double precision)
    returns double precision language plpgsql set search_path = public, pg_temp as $$
declare q quotas; now_at timestamptz; used integer; wait double precision;
begin
    select * into q from quotas k where k.org_id = org and k.scope = 'tool' and k.name = tool for update;
    if not found then
        return null;
    end if;
    now_at := clock_timestamp(); -- not now(): we may have waited for the lock
    if exists (select from quota_uses u where u.holder = by_whom) then
        return null; -- the answer to the first try was lost on the way
    end if;
    delete from quota_uses u where u.org_id = org and u.scope = 'tool' and u.name = tool
        and u.at <= now_at - make_interval(secs => q.per_seconds) and (u.lease_until is null or u.lease_until <= now_at);
    if q.concurrency is not null then
        select count(*), extract(epoch from min(u.lease_until) - now_at) into used, wait from quota_uses u
            where u.org_id = org and u.scope = 'tool' and u.name = tool and u.lease_until > now_at;
        if used >= q.concurrency then
            return greatest(0.05, least(1.0, wait)); -- calls mostly end long before their lease
        end if;
    end if;
    if q.rate is not null then
        select count(*) into used from quota_uses u where u.org_id = org and u.scope = 'tool' and u.name = tool
            and u.at > now_at - make_interval(secs => q.per_seconds);
        if used >= q.rate then
            -- when enough of them will be older than the window
            select extract(epoch from u.at - now_at) + q.per_seconds into wait from quota_uses u
                where u.org_id = org and u.scope = 'tool' and u.name = tool
                    and u.at > now_at - make_interval(secs => q.per_seconds)
                order by u.at offset used - q.rate limit 1;
            return greatest(0.05, coalesce(wait, q.per_seconds)); -- a rate of 0 lets nothing through, ever
        end if;
    end if;
    insert into quota_uses (org_id, scope, name, holder, at, lease_until)
        values (org, 'tool', tool, by_whom, now_at, now_at + make_interval(secs => lease_seconds));
    return null;
end $$;

-- The call is over. Its start goes on counting towards the rate.
create or replace function return_call(by_whom text) returns void language sql set search_path = public, pg_temp as $$
    update quota_uses u set lease_until = null where u.holder = by_whom
$$;

-- Which tools have a quota, of all organisations: what each process keeps in memory.
create or replace function limited_tools() returns table (org_id text, name text)
    language sql stable security definer set search_path = public, pg_temp as $$
    select q.org_id, q.name from quotas q where q.scope = 'tool'
$$;
