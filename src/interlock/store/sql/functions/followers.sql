-- Event streams.
-- Notifies followers of the runs that a batch changes: the payload is the run's id. Called last by `settle_v1`, in its transaction. Returns how many.
create or replace function notify_followers(batch jsonb) returns integer language plpgsql as $$
declare delivered integer := 0;
begin
    if exists (select from followed_runs) then
        select count(pg_notify('interlock_runs', changed.run_id)) into delivered from (
            select distinct part.row ->> 'run_id' as run_id
                from unnest(array['journal', 'recorded', 'runs', 'new_reviews', 'closed_reviews', 'new_signals',
                    'new_dead_letters', 'closed_dead_letters']) as parts(name)
                cross join jsonb_array_elements(coalesce(batch -> parts.name, '[]')) as part(row)) as changed
            where exists (select from followed_runs f where f.run_id = changed.run_id and f.until > now());
    end if;
    return delivered;
end $$;
