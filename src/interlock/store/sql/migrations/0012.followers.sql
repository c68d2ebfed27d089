-- Event streams and the ids of signals.
-- depends: 0011.handed

-- Runs that some process follows, until when. `settle` notifies changes of these runs only: a commit with a notification waits for
-- every other such commit of the server, so runs without a follower must cost nothing. Lost in a crash, and renewed by the followers.
create unlogged table followed_runs (
    run_id text not null,
    org_id text not null,
    until timestamptz not null,
    primary key (run_id, org_id)
);

-- Each signal that a run was sent, for as long as the run is kept: one id counts once, also after its event left `signals`.
create table signal_ids (
    run_id text not null references runs,
    signal_id text not null,
    org_id text not null,
    name text not null,
    primary key (run_id, signal_id)
);

do $$ declare name text; begin
    foreach name in array array['followed_runs', 'signal_ids'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
    end loop;
end $$;
grant select, insert, update, delete on followed_runs to interlock_app;
grant select, insert on signal_ids to interlock_app;
