-- Approvals of acts: one call of a mutating tool, approved by a person.
-- depends: 0011.handed

-- The act that a review is about, if it is about one; see `Act.to_json` in execution/approvals.py.
alter table reviews add column act jsonb;
alter table reviews drop constraint reviews_purpose_check;
alter table reviews add constraint reviews_purpose_check check (purpose in ('approve', 'approve_act', 'confirm'));

-- A person's yes to the act with this digest. `step` is the effect's name in the ledger, `consumed_by` its idempotency key:
-- an approval is used up by one effect and stays its own in every attempt at it. `signature` is the application's.
create table approvals (
    review_id text primary key references reviews,
    org_id text not null references orgs,
    run_id text not null references runs,
    step text not null,
    digest text not null,
    approver text not null,
    roles text[] not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    signature text not null,
    consumed_by text,
    consumed_at timestamptz,
    revoked_by text,
    revoked_at timestamptz,
    check ((consumed_by is null) = (consumed_at is null)),
    check ((revoked_by is null) = (revoked_at is null)),
    check (consumed_at is null or revoked_at is null)
);
create index approvals_act on approvals (run_id, step);

alter table approvals enable row level security;
create policy tenant on approvals using (org_id = any(interlock_orgs())) with check (org_id = any(interlock_orgs()));
grant select, insert, update on approvals to interlock_app;

-- Begins unused, as what a person approved; ends used or revoked, once. Holds whatever the application does.
create function check_approval() returns trigger language plpgsql set search_path = public, pg_temp as $$ begin
    if tg_op = 'INSERT' then
        if new.consumed_at is not null or new.revoked_at is not null or not exists (
            select from reviews v where v.review_id = new.review_id and v.org_id = new.org_id and v.run_id = new.run_id
                and v.status = 'approved' and v.decided_by = new.approver
                and v.act ->> 'step' = new.step and v.act ->> 'digest' = new.digest)
        then
            raise exception 'no review approved this act' using errcode = 'IL006';
        end if;
    elsif old.consumed_at is not null or old.revoked_at is not null
        or (old.review_id, old.org_id, old.run_id, old.step, old.digest, old.approver, old.roles, old.created_at, old.expires_at,
            old.signature) is distinct from (new.review_id, new.org_id, new.run_id, new.step, new.digest, new.approver, new.roles,
            new.created_at, new.expires_at, new.signature)
    then
        raise exception 'an approval is used or revoked once, and nothing else of it changes' using errcode = 'IL003';
    end if;
    return new;
end $$;
create trigger kept before insert or update on approvals for each row execute function check_approval();
create trigger no_truncate before truncate on approvals for each statement execute function refuse_change();

-- What a person was asked about stays what it was.
create trigger act_is_fixed before update of review_id, org_id, run_id, step, purpose, role, show, act on reviews
    for each row execute function refuse_change();
