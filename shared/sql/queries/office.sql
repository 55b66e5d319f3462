-- name: switch
-- No row: nobody has ever switched.
SELECT is_off, reason, by_whom, (extract(epoch FROM since) * 1000)::bigint AS since_ms FROM switch;

-- name: set_switch
-- Switched as it stood already nothing changes: the first who did it is the one who is shown.
INSERT INTO switch AS s (is_off, reason, by_whom) VALUES ($1, $2, $3)
ON CONFLICT (one) DO UPDATE SET is_off = excluded.is_off, reason = excluded.reason,
  by_whom = excluded.by_whom, since = excluded.since
WHERE s.is_off <> excluded.is_off;

-- name: audit_list
-- Newest first. Filters are whole words: nothing of it is searched by its parts.
SELECT number, (extract(epoch FROM at) * 1000)::bigint AS at_ms, actor, action, object, result,
  reason, request_id, address
FROM audit_log
WHERE ($1::text IS NULL OR actor = $1) AND ($2::text IS NULL OR action = $2)
  AND ($3::text IS NULL OR object = $3)
  AND ($4::bigint = 0 OR at >= to_timestamp($4 / 1000.0))
  AND ($5::bigint = 0 OR at < to_timestamp($5 / 1000.0))
  AND ($6::bigint = 0 OR number < $6)
ORDER BY number DESC LIMIT $7;

-- name: acts_on
-- What was done to an object, newest first, as of when it was asked for: `ok` is written after.
SELECT o.number, (extract(epoch FROM coalesce(a.at, o.at)) * 1000)::bigint AS at_ms, o.actor,
  o.action, o.object, o.result, o.reason, o.request_id, o.address
FROM audit_log o LEFT JOIN LATERAL (
  SELECT at FROM audit_log WHERE object = o.object AND number < o.number AND result = 'asked'
    AND action = o.action AND request_id = o.request_id ORDER BY number DESC LIMIT 1) a ON true
WHERE o.object = $1 AND o.result = 'ok' AND o.action = ANY ($2)
ORDER BY o.number DESC LIMIT $3;

-- name: user_list
-- Newest first.
SELECT *, (extract(epoch FROM created_at) * 1000)::bigint AS created_ms FROM users
WHERE $1::bigint = 0 OR number_in_list < $1 ORDER BY number_in_list DESC LIMIT $2;

-- name: lock_admins
-- Two admins who take each other's role at once must not both succeed.
SELECT id FROM users WHERE role = 'admin' AND NOT is_disabled ORDER BY id FOR UPDATE;

-- name: change_user
-- NULL leaves a part as it is.
UPDATE users SET email = coalesce($2, email), role = coalesce($3, role),
  is_disabled = coalesce($4, is_disabled), password_hash = coalesce($5, password_hash)
WHERE id = $1::uuid
RETURNING *, (extract(epoch FROM created_at) * 1000)::bigint AS created_ms;

-- name: key_list
-- A user's keys that are not revoked, newest first.
SELECT id, name, scopes, last4, number_in_list,
  coalesce((extract(epoch FROM last_used_at) * 1000)::bigint, 0) AS last_used_ms,
  coalesce((extract(epoch FROM expires_at) * 1000)::bigint, 0) AS expires_ms
FROM api_keys WHERE user_id = $1::uuid AND revoked_at IS NULL
  AND ($2::bigint = 0 OR number_in_list < $2)
ORDER BY number_in_list DESC LIMIT $3;

-- name: own_key_revoked
-- The owner stands inside the question: what is foreign looks absent; NULL asks as an operator.
UPDATE api_keys SET revoked_at = now()
WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2::uuid) AND revoked_at IS NULL;

-- name: key_used
-- To the minute: a key that is used all the time is not written all the time.
UPDATE api_keys SET last_used_at = now()
WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute');

-- name: sender_list
-- Newest first.
SELECT *, (extract(epoch FROM token_set_at) * 1000)::bigint AS token_set_ms FROM senders
WHERE $1::bigint = 0 OR number_in_list < $1 ORDER BY number_in_list DESC LIMIT $2;

-- name: sender_of_id
-- As in the list.
SELECT *, (extract(epoch FROM token_set_at) * 1000)::bigint AS token_set_ms FROM senders
WHERE id = $1;

-- name: sender_for_change
-- Whoever changes a sender decides on the row as it stands.
SELECT * FROM senders WHERE id = $1 FOR UPDATE;

-- name: new_sender
-- The emptiest shard is the caller's to find.
INSERT INTO senders (id, name, phone_number_id, number, token_sealed, waba_id, graph_api_version,
  rate, burst, shard, is_default, allowed_regions)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: stop_accepting
-- From now on no job of this sender is accepted; waits for those that are just being accepted.
SELECT pg_advisory_lock(hashtextextended('sender:' || $1, 0));

-- name: accept_again
-- The other end of it; a connection that is lost does the same.
SELECT pg_advisory_unlock(hashtextextended('sender:' || $1, 0));

-- name: unfinished_of_sender
-- What binds a sender to its shard.
SELECT count(*)::integer FROM bulk_jobs
WHERE sender_id = $1 AND state NOT IN ('completed', 'cancelled');

-- name: reshard_sender
-- Its workers tell the new shard within a second.
UPDATE senders SET shard = $2, version = version + 1 WHERE id = $1;

-- name: senders_by_shard
-- Where a new sender goes.
SELECT shard, count(*)::integer AS n FROM senders GROUP BY shard;

-- name: change_sender
-- A whole row, decided on while it was locked. What only the old token stood in the way of goes on.
UPDATE senders SET name = $2, phone_number_id = $3, number = $4, token_sealed = $5, waba_id = $6,
  graph_api_version = $7, rate = $8, burst = $9, is_default = $10, allowed_regions = $11,
  version = version + 1,
  token_set_at = CASE WHEN token_sealed = $5 THEN token_set_at ELSE now() END,
  state = CASE WHEN state = 'paused' AND why LIKE 'token%' AND token_sealed <> $5
    THEN 'active' ELSE state END,
  why = CASE WHEN state = 'paused' AND why LIKE 'token%' AND token_sealed <> $5
    THEN '' ELSE why END
WHERE id = $1;

-- name: suppression_list
-- Those in force, newest first.
SELECT id, phone, scope, reason, source, created_by, number_in_list,
  (extract(epoch FROM created_at) * 1000)::bigint AS created_ms
FROM suppressions WHERE lifted_at IS NULL
  AND ($1::text IS NULL OR scope = $1) AND ($2::bigint = 0 OR number_in_list < $2)
ORDER BY number_in_list DESC LIMIT $3;

-- name: suppression_of
-- The one entry in force of a person and scope.
SELECT id, phone, scope, reason, source, created_by, number_in_list,
  (extract(epoch FROM created_at) * 1000)::bigint AS created_ms
FROM suppressions WHERE lifted_at IS NULL AND phone = $1 AND scope = $2;

-- name: add_suppression
-- One entry in force a person and scope; the one that is there stays as it is.
INSERT INTO suppressions (id, phone, scope, reason, source, created_by, change)
VALUES ($1, $2, $3, $4, $5, $6, (SELECT coalesce(max(change), 0) + 1 FROM suppressions))
ON CONFLICT (phone, scope) WHERE lifted_at IS NULL DO NOTHING;

-- name: add_suppressions
-- As `add_suppression`, for many; change numbers may have gaps, but no two entries one.
INSERT INTO suppressions (id, phone, scope, reason, source, created_by, change)
SELECT n.id, n.phone, $3, $4, $5, $6,
  (SELECT coalesce(max(change), 0) FROM suppressions) + row_number() OVER ()
FROM unnest($1::text[], $2::bigint[]) AS n (id, phone)
ON CONFLICT (phone, scope) WHERE lifted_at IS NULL DO NOTHING RETURNING id;

-- name: lift_suppression
-- Lifted, never deleted: the copies of the workers must hear of it.
UPDATE suppressions SET lifted_at = now(),
  change = (SELECT coalesce(max(change), 0) + 1 FROM suppressions)
WHERE id = $1 AND lifted_at IS NULL;

-- name: server_clock
-- Held against the machine's own.
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;

-- name: lacking
-- What api and worker do with a table; nobody but the owner changes a line of the audit log.
SELECT n.needed, c.relname AS name
FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace,
  unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS n (needed)
WHERE s.nspname = current_schema() AND c.relkind = 'r'
  AND (n.needed = 'SELECT' OR c.relname <> 'schema_migrations')
  AND (n.needed IN ('SELECT', 'INSERT') OR c.relname <> 'audit_log')
  AND (n.needed <> 'DELETE' OR c.relname IN ('bulk_jobs', 'uploads', 'templates'))
  AND NOT has_table_privilege(c.oid, n.needed)
ORDER BY 2, 1;
