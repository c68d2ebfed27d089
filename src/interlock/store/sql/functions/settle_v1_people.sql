-- Parts of settle_v1 that ask people and record their decisions: reviews and dead letters.

create or replace function settle_v1_new_reviews(asked jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into reviews (review_id, org_id, run_id, step, purpose, title, role, show, act)
        select review_id, org_id, run_id, step, purpose, title, role, show, act
        from jsonb_to_recordset(asked) as v(review_id text, org_id text, run_id text, step text,
            purpose text, title text, role text, show jsonb, act jsonb);
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_closed_reviews(closed jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update reviews set status = 'closed', decided_at = now()
        from jsonb_to_recordset(closed) as c(run_id text, step text)
        where reviews.run_id = c.run_id and reviews.step = c.step and reviews.status = 'open';
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_decided_reviews(decided jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update reviews set status = d.status, decided_by = d.decided_by, note = d.note, decided_at = now()
        from jsonb_to_recordset(decided) as d(review_id text, status text, decided_by text, note text)
        where reviews.review_id = d.review_id and reviews.status = 'open';
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(decided) then
        raise exception 'review is not open' using errcode = 'IL005';
    end if;
    return touched;
end $$;

create or replace function settle_v1_new_dead_letters(opened jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    insert into dead_letters (dead_letter_id, org_id, run_id, step, purpose, code, reason)
        select dead_letter_id, org_id, run_id, step, purpose, code, reason
        from jsonb_to_recordset(opened) as l(dead_letter_id text, org_id text, run_id text, step text,
            purpose text, code text, reason text)
        on conflict do nothing;
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_closed_dead_letters(closed jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update dead_letters set status = 'closed', decided_at = now()
        from jsonb_to_recordset(closed) as c(run_id text, step text)
        where dead_letters.run_id = c.run_id and dead_letters.step = c.step and dead_letters.status = 'open';
    get diagnostics touched = row_count;
    return touched;
end $$;

create or replace function settle_v1_decided_dead_letters(decided jsonb) returns integer language plpgsql as $$
declare touched integer;
begin
    update dead_letters set status = d.status, decided_by = d.decided_by, note = d.note, new_run = d.new_run, decided_at = now()
        from jsonb_to_recordset(decided) as d(dead_letter_id text, status text, decided_by text, note text, new_run text)
        where dead_letters.dead_letter_id = d.dead_letter_id and dead_letters.status = 'open';
    get diagnostics touched = row_count;
    if touched <> jsonb_array_length(decided) then
        raise exception 'dead letter is not open' using errcode = 'IL005';
    end if;
    return touched;
end $$;
