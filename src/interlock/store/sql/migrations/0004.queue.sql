-- Fair claiming: lanes, priorities, engines; and quotas.
-- depends: 0003.health

alter table runs add column engine text not null default 'postgres';
alter table runs add column priority smallint not null default 0 check (priority between -100 and 100);

alter table queue add column workflow text not null default '';
alter table queue add column priority smallint not null default 0 check (priority between -100 and 100);
alter table queue add column engine text not null default 'postgres';
update queue set workflow = runs.workflow from runs where runs.run_id = queue.run_id;

-- A lane is a workflow of an organisation. Whoever claims hops from lane to lane in this index, and in each reads the first
-- few rows: all keys ascending, so that one comparison of rows can hop. What sleeps until a signal is not in it.
create index queue_lanes on queue (engine, org_id, workflow, (-priority), ((fence = 0)::integer), available_at)
    where worker is null and available_at < 'infinity';
create index queue_leased on queue (engine, org_id, workflow) where worker is not null;
drop index queue_next;

-- concurrency: runs driven, or calls under way, at once. rate: runs begun, or calls made, in `per_seconds`.
create table quotas (
    org_id text not null references orgs,
    scope text not null check (scope in ('org', 'workflow', 'tool')),
    name text not null,
    concurrency integer check (concurrency >= 0),
    rate integer check (rate >= 0),
    per_seconds double precision not null default 60 check (per_seconds > 0 and per_seconds <= 86400),
    primary key (org_id, scope, name),
    check (concurrency is not null or rate is not null),
    check ((scope = 'org') = (name = ''))
);

-- What counts towards them: the starts of the last `per_seconds`, and calls that hold a slot.
create table quota_uses (
    use_id bigint generated always as identity primary key,
    org_id text not null,
    scope text not null,
    name text not null,
    holder text not null,
    at timestamptz not null,
    lease_until timestamptz
);
create index quota_uses_by_time on quota_uses (org_id, scope, name, at);
create index quota_uses_held on quota_uses (holder);

do $$ declare name text; begin
    foreach name in array array['quotas', 'quota_uses'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
        execute format('grant select, insert, update, delete on %I to interlock_app', name);
    end loop;
end $$;
