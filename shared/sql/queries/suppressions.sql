-- name: lock_suppressions
-- Change numbers must be committed in their order, or a copy that reads on misses one.
SELECT pg_advisory_xact_lock($1, -1);

-- name: suppress
-- The id is made of its cause: the same outcome written again changes nothing, a lifted entry stays.
-- 0 = a number that was erased.
INSERT INTO suppressions (id, phone, scope, reason, source, created_by, change)
SELECT 'sup_' || left(md5(n.cause), 26), n.phone, n.scope, n.reason, 'graph', 'system',
  (SELECT coalesce(max(change), 0) FROM suppressions) + row_number() OVER ()
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) AS n (cause, phone, scope, reason)
WHERE n.phone <> 0 ON CONFLICT DO NOTHING;

-- name: suppressions_since
-- What changed after a number, in the order of the changes; lifted entries too.
SELECT id, phone, scope, reason, source, lifted_at IS NOT NULL AS is_lifted, change
FROM suppressions WHERE change > $1 ORDER BY change LIMIT $2;
