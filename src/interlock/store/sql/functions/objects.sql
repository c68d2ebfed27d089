-- Objects that no commit named.
-- Run as the schema's owner: they look across organisations and return names only.

-- Marks objects that have been pending for longer than any commit takes, and those whose sweeper died. `settle` refuses to name one
-- that is marked.
create or replace function sweep_objects(grace_seconds double precision, wanted integer) returns setof text
    language sql security definer set search_path = public, pg_temp as $$
    update pending_objects set swept_at = coalesce(swept_at, now()) where name in (
            select p.name from pending_objects p where p.created_at < now() - make_interval(secs => grace_seconds)
                order by p.created_at limit wanted for update skip locked)
        returning name
$$;

create or replace function objects_swept(names text[]) returns void
    language sql security definer set search_path = public, pg_temp as $$
    delete from pending_objects where name = any(names) and swept_at is not null
$$;
