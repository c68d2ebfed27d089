-- Parts of settle_v1 about approvals of acts: granted by the decision of a review, used up once by the effect they are for, or
-- revoked before that.

-- With the decision of its review, in one transaction; the trigger on the table compares the two (IL007).
create or replace function settle_v1_new_approvals(given jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into approvals (review_id, org_id, run_id, step, digest, approver, roles, expires_at, signature)
        select review_id, org_id, run_id, step, digest, approver, roles, to_timestamp(expires), signature
        from jsonb_to_recordset(given) as a(review_id text, org_id text, run_id text, step text, digest text, approver text,
            roles text[], expires bigint, signature text);
    get diagnostics touched = row_count;
    return touched;
end $$;

-- All of them or none (IL007). Of two transactions that want the same one, the second waits for the first, and finds it used.
-- The rows are found by an array: of a set made of JSON the planner expects a hundred rows, and reads the whole table for them.
create or replace function settle_v1_consumed_approvals(wanted jsonb) returns integer language plpgsql as $$
declare
    touched integer;
    ids text[] := array(select w.review_id from jsonb_to_recordset(wanted) as w(review_id text));
begin
    perform from approvals where approvals.review_id = any(ids) order by approvals.review_id for update;
    update approvals set consumed_by = w.consumed_by, consumed_at = clock_timestamp()
        from jsonb_to_recordset(wanted) as w(review_id text, org_id text, run_id text, step text, digest text, consumed_by text)
        where approvals.review_id = any(ids) and approvals.review_id = w.review_id and approvals.org_id = w.org_id
            and approvals.run_id = w.run_id and approvals.step = w.step and approvals.digest = w.digest
            and approvals.consumed_at is null and approvals.revoked_at is null and approvals.expires_at > clock_timestamp();
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(wanted) then
        raise exception 'an approval is used, revoked, expired or missing' using errcode = 'IL007';
    end if;
    return touched;
end $$;

-- What is used up or expired cannot be revoked any more (IL005).
create or replace function settle_v1_revoked_approvals(unwanted jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update approvals set revoked_by = r.revoked_by, revoked_at = clock_timestamp()
        from jsonb_to_recordset(unwanted) as r(review_id text, revoked_by text)
        where approvals.review_id = r.review_id and approvals.consumed_at is null and approvals.revoked_at is null
            and approvals.expires_at > clock_timestamp();
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(unwanted) then
        raise exception 'the approval cannot be revoked' using errcode = 'IL005';
    end if;
    return touched;
end $$;
