-- Breakers and tool health. What looks across organisations runs as the schema's owner and returns names and states only.

-- Asks to call a target whose breaker is not known to be closed. `admitted`: go ahead; `probe` was taken if it is half open.
create or replace function breaker_enter(org text, wanted text, probe text, probe_limit integer, probe_seconds double precision)
    returns table (was text, state text, open_for double precision, failing_for double precision, admitted boolean)
    language plpgsql set search_path = public, pg_temp as $$
declare b breakers; at timestamptz; before text;
begin
    select * into b from breakers k where k.org_id = org and k.target = wanted for update;
    at := clock_timestamp(); -- not now(): we may have waited for the lock
    before := b.state;
    if not found or b.state = 'closed' then
        return query select 'closed', 'closed', 0::double precision, 0::double precision, true;
        return;
    end if;
    if b.state = 'open' and b.open_until > at then
        return query select before, before, extract(epoch from b.open_until - at)::double precision, 0::double precision, false;
        return;
    end if;
    if b.state = 'open' then
        b.state := 'half_open';
        b.probes := '{}';
        b.succeeded := 0;
        perform pg_notify('interlock_health', '');
    end if;
    -- The workers that took these probes are dead, or so slow that it makes no difference.
    select coalesce(jsonb_object_agg(p.key, p.value), '{}') into b.probes from jsonb_each(b.probes) p
        where p.value::double precision > extract(epoch from at);
    admitted := (select count(*) from jsonb_object_keys(b.probes)) + b.succeeded < probe_limit;
    if admitted then
        b.probes := b.probes || jsonb_build_object(probe, extract(epoch from at)::double precision + probe_seconds);
    end if;
    update breakers k set state = b.state, probes = b.probes, succeeded = b.succeeded where k.org_id = org and k.target = wanted;
    return query select before, b.state, 0::double precision, 0::double precision, admitted;
end $$;

-- What became of a call: 'failed' speaks against the target, 'answered' for it, 'unused' means that it was never made.
-- A call that began before the breaker moved has no probe, or an old one, and says nothing about the state it is in now.
create or replace function breaker_report(org text, wanted text, probe text, outcome text, threshold integer,
        window_seconds double precision, open_seconds double precision, probe_limit integer)
    returns table (was text, state text, open_for double precision, failing_for double precision)
    language plpgsql set search_path = public, pg_temp as $$
declare b breakers; at timestamptz; before text;
begin
    if outcome = 'failed' then
        insert into breakers (org_id, target) values (org, wanted) on conflict do nothing;
    end if;
    select * into b from breakers k where k.org_id = org and k.target = wanted for update;
    if not found then
        return query select 'closed', 'closed', 0::double precision, 0::double precision;
        return;
    end if;
    at := clock_timestamp();
    before := b.state;
    if b.state = 'closed' then
        if outcome = 'answered' then
            b.failures := '{}';
        elsif outcome = 'failed' then
            b.failures := array(select f from unnest(b.failures) f where f > at - make_interval(secs => window_seconds)) || at;
            if cardinality(b.failures) >= threshold then
                b.state := 'open';
            end if;
        end if;
    elsif b.state = 'half_open' and b.probes ? probe then
        b.probes := b.probes - probe;
        if outcome = 'failed' then
            b.state := 'open';
        elsif outcome = 'answered' then
            b.succeeded := b.succeeded + 1;
            if b.succeeded >= probe_limit then
                b.state := 'closed';
            end if;
        end if;
    end if;
    if b.state <> before then
        b.failures := '{}';
        b.probes := '{}';
        b.succeeded := 0;
        b.open_until := case when b.state = 'open' then at + make_interval(secs => open_seconds) end;
    end if;
    update breakers k set state = b.state, failures = b.failures, open_until = b.open_until, probes = b.probes,
        succeeded = b.succeeded where k.org_id = org and k.target = wanted;
    perform pg_notify('interlock_health', '');
    return query select before, b.state, greatest(0, extract(epoch from b.open_until - at))::double precision,
        greatest(0, window_seconds - extract(epoch from at - b.failures[cardinality(b.failures)]))::double precision;
end $$;

-- Every breaker that is not simply closed, of all organisations: what each process keeps in memory.
create or replace function breaker_states(window_seconds double precision)
    returns table (org_id text, target text, state text, open_for double precision, failing_for double precision)
    language sql stable security definer set search_path = public, pg_temp as $$
    select b.org_id, b.target, b.state,
        greatest(0, extract(epoch from b.open_until - clock_timestamp()))::double precision,
        greatest(0, window_seconds
            - extract(epoch from clock_timestamp() - b.failures[cardinality(b.failures)]))::double precision
    from breakers b where b.state <> 'closed'
        or b.failures[cardinality(b.failures)] > clock_timestamp() - make_interval(secs => window_seconds)
$$;

-- Called by every deployment: the tools with a health check in the versions that new runs get, and no others. One that
-- was there keeps its state. Under row-level security, so it sees one organisation.
create or replace function renew_tool_health(org text) returns void language plpgsql set search_path = public, pg_temp as $$
begin
    perform from orgs where org_id = org for update; -- two deployments at once must not undo each other
    delete from tool_health t where t.org_id = org and not exists (
        select from workflow_heads h join workflow_versions v using (org_id, name, version)
            where h.org_id = org and v.definition -> 'tools' -> t.tool ->> 'bundle' = t.bundle
                and jsonb_typeof(v.definition -> 'tools' -> t.tool -> 'contract' -> 'health') = 'object');
    insert into tool_health (org_id, tool, bundle, contract)
        select distinct on (d.key, d.value ->> 'bundle') org, d.key, d.value ->> 'bundle', d.value -> 'contract'
        from workflow_heads h join workflow_versions v using (org_id, name, version), jsonb_each(v.definition -> 'tools') d
        where h.org_id = org and jsonb_typeof(d.value -> 'contract' -> 'health') = 'object'
        order by d.key, d.value ->> 'bundle', h.updated_at desc
        on conflict (org_id, tool, bundle) do update set contract = excluded.contract
            where tool_health.contract <> excluded.contract;
    perform pg_notify('interlock_health', '');
end $$;

-- Claims due checks. Until the lease ends no other worker claims them; after it, the claimant counts as dead.
create or replace function claim_tool_checks(wanted integer, lease_seconds double precision)
    returns table (org_id text, tool text, bundle text, contract jsonb, claim bigint)
    language sql security definer set search_path = public, pg_temp as $$
    with due as materialized (
        select d.org_id, d.tool, d.bundle from tool_health d where d.next_at <= now()
        order by d.next_at limit wanted for update skip locked)
    update tool_health t set claim = t.claim + 1, next_at = now() + make_interval(
            secs => lease_seconds + coalesce((t.contract ->> 'timeout')::double precision, 0))
        from due where (t.org_id, t.tool, t.bundle) = (due.org_id, due.tool, due.bundle)
        returning t.org_id, t.tool, t.bundle, t.contract, t.claim
$$;

-- A check's result, from the poller whose turn it still is; `good` is null if the tool could not be asked.
create or replace function report_tool_check(org text, name text, code text, turn bigint, good boolean, said text, bad_limit integer)
    returns table (was boolean, healthy boolean) language plpgsql set search_path = public, pg_temp as $$
declare h tool_health; before boolean;
begin
    select * into h from tool_health t where t.org_id = org and t.tool = name and t.bundle = code and t.claim = turn for update;
    if not found then
        return; -- another poller has taken over, or the tool is not deployed any more
    end if;
    before := h.healthy;
    if good is not null then
        h.bad := case when good then 0 else h.bad + 1 end;
        h.healthy := good or (before and h.bad < bad_limit);
        h.detail := said;
        h.checked_at := clock_timestamp();
    end if;
    update tool_health t set bad = h.bad, healthy = h.healthy, detail = h.detail, checked_at = h.checked_at,
            next_at = clock_timestamp() + make_interval(secs => coalesce((t.contract -> 'health' ->> 'every')::double precision, 30))
        where t.org_id = org and t.tool = name and t.bundle = code;
    if before <> h.healthy then
        perform pg_notify('interlock_health', '');
    end if;
    return query select before, h.healthy;
end $$;

-- What the kernel refuses to call, of all organisations.
create or replace function unhealthy_tools() returns table (org_id text, tool text, bundle text, detail text)
    language sql stable security definer set search_path = public, pg_temp as $$
    select t.org_id, t.tool, t.bundle, t.detail from tool_health t where not t.healthy
$$;
