-- Whether tools and providers can be called: breakers, and what tools say about themselves.
-- depends: 0002.security

-- A breaker that never saw a failure has no row. `failures` are those in a row while it is closed; `probes` maps the calls
-- let through on trial while it is half open to the second (Unix time) at which they are given up.
create table breakers (
    org_id text not null references orgs,
    target text not null,
    state text not null default 'closed' check (state in ('closed', 'open', 'half_open')),
    failures timestamptz[] not null default '{}',
    open_until timestamptz,
    probes jsonb not null default '{}',
    succeeded integer not null default 0,
    primary key (org_id, target)
);

-- Every tool with a health check in a deployed head version. `claim` grows with every check, so that a poller which slept
-- past its turn cannot report; `bad` counts bad answers in a row.
create table tool_health (
    org_id text not null references orgs,
    tool text not null,
    bundle text not null,
    contract jsonb not null,
    healthy boolean not null default true,
    bad integer not null default 0,
    detail text not null default '',
    checked_at timestamptz,
    next_at timestamptz not null default now(),
    claim bigint not null default 0,
    primary key (org_id, tool, bundle)
);
create index tool_health_next on tool_health (next_at);

do $$ declare name text; begin
    foreach name in array array['breakers', 'tool_health'] loop
        execute format('alter table %I enable row level security', name);
        execute format('create policy tenant on %I using (org_id = any(interlock_orgs())) '
                       'with check (org_id = any(interlock_orgs()))', name);
        execute format('grant select, insert, update, delete on %I to interlock_app', name);
    end loop;
end $$;
