-- The write path: commits everything that a batch of steps, runs and decisions wants written, in one transaction and one round
-- trip. Refuses the whole batch: IL001 if a run's fence or a command's claim moved on, IL002 if an audit head did, IL005 if a
-- review or a dead letter is not open any more, IL006 if a large value was swept, IL007 if an approval cannot be used, IL008 if a key
-- or quota that is to end is not there.
--
-- One function a part, called only if the part is there. PL/pgSQL prepares every expression anew in each transaction, so parts that
-- seldom come are looked for together, and parts are called by assignment, which starts no executor as `perform` would; a function
-- returns the number of rows that it wrote.
-- The fields of each part are those of its class in store/rows.py, people_rows.py or admin_rows.py. Decision 0011 says how a settle_v2 would come beside it.
create or replace function settle_v1(batch jsonb) returns void language plpgsql as $$
declare written integer;
begin
    perform set_config('interlock.orgs', batch ->> 'orgs', true);

    if batch ? 'new_orgs' then
        written := settle_v1_new_orgs(batch -> 'new_orgs');
    end if;
    -- Always the log's head first and the runs after it, each in order: two processes never wait for each other in a circle.
    if batch ? 'heads' then
        written := settle_v1_audit(batch -> 'heads', batch -> 'audit');
    end if;
    if batch ?| array['new_signals', 'new_claims', 'places', 'requeued', 'finished'] then
        written := settle_v1_fences(batch -> 'fences', coalesce(batch -> 'fences', '[]') || coalesce(batch -> 'new_signals', '[]')
            || coalesce(batch -> 'new_claims', '[]') || coalesce(batch -> 'places', '[]') || coalesce(batch -> 'requeued', '[]')
            || coalesce(batch -> 'finished', '[]'));
    elsif batch ? 'fences' then
        written := settle_v1_fences(batch -> 'fences', batch -> 'fences');
    end if;
    if batch ?| array['claims', 'revived', 'new_claims'] then
        if batch ? 'claims' then
            written := settle_v1_claims(batch -> 'claims');
        end if;
        if batch ? 'revived' then
            written := settle_v1_revived(batch -> 'revived');
        end if;
        if batch ? 'new_claims' then
            written := settle_v1_new_claims(batch -> 'new_claims');
        end if;
    end if;

    if batch ? 'artifacts' then
        written := settle_v1_artifacts(batch -> 'artifacts');
    end if;
    if batch ?| array['new_runs', 'new_vaults'] then
        if batch ? 'new_runs' then
            written := settle_v1_new_runs(batch -> 'new_runs');
        end if;
        if batch ? 'new_vaults' then
            written := settle_v1_new_vaults(batch -> 'new_vaults');
        end if;
    end if;
    if batch ? 'journal' then
        written := settle_v1_journal(batch -> 'journal');
    end if;
    -- The same without a lease: two that write the same event meet at its key, and the second is refused.
    if batch ? 'recorded' then
        written := settle_v1_journal(batch -> 'recorded');
    end if;
    if batch ? 'runs' then
        written := settle_v1_runs(batch -> 'runs');
    end if;
    if batch ?| array['consumed_approvals', 'effects'] then
        if batch ? 'consumed_approvals' then
            written := settle_v1_consumed_approvals(batch -> 'consumed_approvals');
        end if;
        if batch ? 'effects' then
            written := settle_v1_effects(batch -> 'effects');
        end if;
    end if;
    if batch ?| array['done_claims', 'used_reservations', 'settled_reservations'] then
        if batch ? 'done_claims' then
            written := settle_v1_done_claims(batch -> 'done_claims');
        end if;
        if batch ? 'used_reservations' then
            written := settle_v1_used_reservations(batch -> 'used_reservations');
        end if;
        if batch ? 'settled_reservations' then
            written := settle_v1_settled_reservations(batch -> 'settled_reservations');
        end if;
    end if;

    if batch ?| array['new_reviews', 'closed_reviews', 'decided_reviews', 'new_approvals', 'revoked_approvals', 'results', 'new_dead_letters',
            'closed_dead_letters', 'decided_dead_letters', 'new_policies', 'activated_policies'] then
        if batch ? 'new_reviews' then
            written := settle_v1_new_reviews(batch -> 'new_reviews');
        end if;
        if batch ? 'closed_reviews' then
            written := settle_v1_closed_reviews(batch -> 'closed_reviews');
        end if;
        if batch ? 'decided_reviews' then
            written := settle_v1_decided_reviews(batch -> 'decided_reviews');
        end if;
        if batch ? 'new_approvals' then
            written := settle_v1_new_approvals(batch -> 'new_approvals');
        end if;
        if batch ? 'revoked_approvals' then
            written := settle_v1_revoked_approvals(batch -> 'revoked_approvals');
        end if;
        if batch ? 'results' then
            written := settle_v1_results(batch -> 'results');
        end if;
        if batch ? 'new_dead_letters' then
            written := settle_v1_new_dead_letters(batch -> 'new_dead_letters');
        end if;
        if batch ? 'closed_dead_letters' then
            written := settle_v1_closed_dead_letters(batch -> 'closed_dead_letters');
        end if;
        if batch ? 'decided_dead_letters' then
            written := settle_v1_decided_dead_letters(batch -> 'decided_dead_letters');
        end if;
        if batch ? 'new_policies' then
            written := settle_v1_new_policies(batch -> 'new_policies');
        end if;
        if batch ? 'activated_policies' then
            written := settle_v1_activated_policies(batch -> 'activated_policies');
        end if;
    end if;

    if batch ?| array['signal_ids', 'new_signals', 'crashed', 'requeued', 'used_signals', 'forwarded_signals'] then
        if batch ? 'signal_ids' then
            written := settle_v1_signal_ids(batch -> 'signal_ids');
        end if;
        if batch ? 'new_signals' then
            written := settle_v1_new_signals(batch -> 'new_signals');
        end if;
        if batch ? 'crashed' then
            written := settle_v1_crashed(batch -> 'crashed');
        end if;
        if batch ? 'requeued' then
            written := settle_v1_requeued(batch -> 'requeued');
        end if;
        if batch ? 'used_signals' then
            written := settle_v1_used_signals(batch -> 'used_signals');
        end if;
        if batch ? 'forwarded_signals' then
            written := settle_v1_forwarded_signals(batch -> 'forwarded_signals');
        end if;
    end if;
    if batch ?| array['new_keys', 'revoked_keys', 'new_quotas', 'removed_quotas', 'new_versions', 'moved_heads', 'drained_workers',
            'requeued_deliveries'] then
        if batch ? 'new_keys' then
            written := settle_v1_new_keys(batch -> 'new_keys');
        end if;
        if batch ? 'revoked_keys' then
            written := settle_v1_revoked_keys(batch -> 'revoked_keys');
        end if;
        if batch ? 'new_quotas' then
            written := settle_v1_new_quotas(batch -> 'new_quotas');
        end if;
        if batch ? 'removed_quotas' then
            written := settle_v1_removed_quotas(batch -> 'removed_quotas');
        end if;
        if batch ? 'new_versions' then
            written := settle_v1_new_versions(batch -> 'new_versions');
        end if;
        if batch ? 'moved_heads' then
            written := settle_v1_moved_heads(batch -> 'moved_heads');
        end if;
        if batch ? 'drained_workers' then
            written := settle_v1_drained_workers(batch -> 'drained_workers');
        end if;
        if batch ? 'requeued_deliveries' then
            written := settle_v1_requeued_deliveries(batch -> 'requeued_deliveries');
        end if;
    end if;
    if batch ? 'outbox' then
        written := settle_v1_outbox(batch -> 'outbox');
    end if;
    if batch ?| array['abandoned_calls', 'finished'] then
        written := settle_v1_abandoned_calls(coalesce(batch -> 'abandoned_calls', '[]'), coalesce(batch -> 'finished', '[]'));
        if batch ? 'finished' then
            written := settle_v1_finished(batch -> 'finished');
        end if;
    end if;
    if batch ?| array['places', 'released'] then
        if batch ? 'places' then
            written := settle_v1_places(batch -> 'places');
        end if;
        if batch ? 'released' then
            written := settle_v1_released(batch -> 'released');
        end if;
    end if;
    written := notify_followers(batch);
end $$;
