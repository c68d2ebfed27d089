-- Objects that were stored before the commit that names them.
-- depends: 0011.handed

-- A row is written before its object, goes with the commit that names the object, and is swept with the object if none does.
create table pending_objects (
    name text primary key,
    org_id text not null references orgs,
    created_at timestamptz not null default now(),
    swept_at timestamptz
);
create index pending_objects_age on pending_objects (created_at);
alter table pending_objects enable row level security;
create policy tenant on pending_objects using (org_id = any(interlock_orgs())) with check (org_id = any(interlock_orgs()));
grant select, insert, update, delete on pending_objects to interlock_app;
