-- Parts of settle_v1 that come first: the audit log, and what must still hold for the rest to be written.

-- Moves the heads of audit logs and adds the entries; refuses (IL002) unless each head is where the writer read it. Run as the
-- schema's owner: nothing else writes heads and entries, so a head only moves on, by entries that continue the chain (IL003).
create or replace function settle_v1_audit(heads jsonb, entries jsonb) returns integer
    language plpgsql security definer set search_path = public, pg_temp as $$
declare touched integer;
begin
    if jsonb_array_length(heads) > 1 then
        perform from audit_heads join jsonb_to_recordset(heads) as h(org_id text) using (org_id)
            order by audit_heads.org_id for update of audit_heads;
    end if;
    if exists (
        select from jsonb_to_recordset(heads) as h(org_id text, expected bigint, seq bigint, hash text)
            left join (
                select org_id, count(*) as added, min(seq) as first, max(seq) as last,
                    (array_agg(prev_hash order by seq))[1] as prev_hash, (array_agg(hash order by seq desc))[1] as hash
                from jsonb_to_recordset(entries) as a(org_id text, seq bigint, prev_hash text, hash text) group by org_id
            ) e using (org_id)
            left join audit_heads k on k.org_id = h.org_id and k.seq = h.expected
            where h.org_id <> all(interlock_orgs()) or e.first is distinct from h.expected + 1 or e.last <> h.seq
                or e.added <> h.seq - h.expected or e.hash <> h.hash or e.prev_hash <> k.hash)
        or exists (select from jsonb_to_recordset(entries) as a(org_id text)
            where not exists (select from jsonb_to_recordset(heads) as h(org_id text) where h.org_id = a.org_id))
    then
        raise exception 'the entries do not continue the audit log' using errcode = 'IL003';
    end if;
    update audit_heads set seq = h.seq, hash = h.hash
        from jsonb_to_recordset(heads) as h(org_id text, expected bigint, seq bigint, hash text)
        where audit_heads.org_id = h.org_id and audit_heads.seq = h.expected;
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(heads) then
        raise exception 'audit head moved' using errcode = 'IL002';
    end if;
    insert into audit (org_id, seq, event_id, entry, prev_hash, hash, key_id, signature, proof)
        select org_id, seq, event_id, entry, prev_hash, hash, key_id, signature, proof
        from jsonb_to_recordset(entries) as a(org_id text, seq bigint, event_id text, entry jsonb, prev_hash text, hash text,
            key_id text, signature text, proof text);
    get diagnostics touched = row_count;
    return touched;
end $$;

-- The heads of audit logs of the caller's organisations, locked in order. Run as the owner: a lock is a right to write.
create or replace function lock_audit_heads(wanted text[]) returns table (org_id text, seq bigint, hash text)
    language sql security definer set search_path = public, pg_temp as $$
    select k.org_id, k.seq, k.hash from audit_heads k
        where k.org_id = any(wanted) and k.org_id = any(interlock_orgs()) order by k.org_id for update
$$;

-- Locks the rows of the queue, in order, before anything is read or written under them; then refuses (IL001) unless every run is
-- still leased under the fence that the writer holds. `fences` is null where no lease is needed.
create or replace function settle_v1_fences(fences jsonb, of_runs jsonb) returns integer language plpgsql as $$
declare moved text;
begin
    perform from queue where queue.run_id in (select l.run_id from jsonb_to_recordset(of_runs) as l(run_id text))
        order by queue.run_id for update;
    if fences is null then
        return 0;
    end if;
    select string_agg(f.run_id, ',') into moved from jsonb_to_recordset(fences) as f(run_id text, fence bigint)
        where not exists (select from queue where queue.run_id = f.run_id and queue.fence = f.fence);
    if moved is not null then
        raise exception 'lease lost' using errcode = 'IL001', detail = moved;
    end if;
    return 0;
end $$;

-- As fences, where single commands are leased: the claim is still the writer's, and the command has not been done since.
create or replace function settle_v1_claims(held jsonb) returns integer language plpgsql as $$
declare moved text;
begin
    perform from claims join jsonb_to_recordset(held) as c(run_id text, command text) using (run_id, command)
        order by claims.run_id, claims.command for update of claims;
    select string_agg(c.run_id, ',') into moved from jsonb_to_recordset(held) as c(run_id text, command text, fence bigint)
        where not exists (select from claims where claims.run_id = c.run_id and claims.command = c.command
            and claims.fence = c.fence and claims.event is null);
    if moved is not null then
        raise exception 'claim lost' using errcode = 'IL001', detail = moved;
    end if;
    return 0;
end $$;
