-- Work that one process of all does every so often. Run as the schema's owner: no organisation owns a job.

-- Takes a job if it is due and no other process is at it. A job that is new is due after its interval.
create or replace function take_job(job text, claimant text, every double precision, lease double precision) returns boolean
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    insert into schedule (name, due_at) select job, clock_timestamp() + make_interval(secs => every)
        where not exists (select from schedule where name = job) on conflict do nothing;
    update schedule set holder = claimant, held_until = clock_timestamp() + make_interval(secs => lease)
        where name = (select s.name from schedule s where s.name = job and s.due_at <= clock_timestamp()
            and s.held_until < clock_timestamp() for update skip locked);
    return found;
end $$;

-- Ends a job; it is due again after `wait` seconds. Nothing if another process has it by now.
create or replace function job_done(job text, claimant text, wait double precision) returns void
    language sql security definer set search_path = public, pg_temp as $$
    update schedule set holder = '', held_until = '-infinity', due_at = clock_timestamp() + make_interval(secs => wait)
        where name = job and holder = claimant
$$;
