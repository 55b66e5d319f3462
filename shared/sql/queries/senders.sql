-- name: add_sender
-- A second sender of the same name replaces token and number, and says so by its version. What only
-- the old token stood in the way of goes on with the new one.
INSERT INTO senders (id, name, phone_number_id, number, token_sealed, waba_id, graph_api_version,
  rate, burst, shard, is_default)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (name) DO UPDATE SET phone_number_id = excluded.phone_number_id,
  number = excluded.number, token_sealed = excluded.token_sealed, waba_id = excluded.waba_id,
  graph_api_version = excluded.graph_api_version, rate = excluded.rate, burst = excluded.burst,
  is_default = excluded.is_default, version = senders.version + 1,
  token_set_at = CASE WHEN senders.token_sealed = excluded.token_sealed
    THEN senders.token_set_at ELSE now() END,
  state = CASE WHEN senders.state = 'paused' AND senders.why LIKE 'token%'
    AND excluded.token_sealed <> senders.token_sealed THEN 'active' ELSE senders.state END,
  why = CASE WHEN senders.state = 'paused' AND senders.why LIKE 'token%'
    AND excluded.token_sealed <> senders.token_sealed THEN '' ELSE senders.why END;

-- name: no_default
-- There is at most one default.
UPDATE senders SET is_default = false, version = version + 1 WHERE is_default AND name <> $1;

-- name: senders
-- All of them: a worker keeps them in memory.
SELECT * FROM senders ORDER BY name;

-- name: sender
-- By name or id; NULL asks for the default.
SELECT * FROM senders WHERE ($1::text IS NULL AND is_default) OR name = $1 OR id = $1 LIMIT 1;

-- name: set_rate
-- NULL: the settings' default.
UPDATE senders SET rate = $2, version = version + 1 WHERE id = $1;

-- name: set_sender_state
-- The version is how a shard knows that it has not heard of this yet.
UPDATE senders SET state = $2, why = $3, until_ms = $4, parks = 0, version = version + 1
WHERE id = $1;

-- name: move_sender
-- Only from the row that the decision was made on: many requests meet one error at once.
UPDATE senders SET state = $3, why = $4, until_ms = $5, parks = $6,
  version = greatest(version + 1, $7)
WHERE id = $1 AND version = $2 RETURNING version;

-- name: forget_parks
-- An acceptance after the hold ends the row of parks. No version: a shard knows nothing of them.
UPDATE senders s SET parks = 0 FROM unnest($1::text[], $2::bigint[]) AS n (id, at_ms)
WHERE s.id = n.id AND s.parks > 0 AND n.at_ms >= s.until_ms;

-- name: has_sent
-- Since when a sender's last message was taken; narrowed by time first, for the index.
SELECT EXISTS (SELECT 1 FROM campaign_logs l JOIN bulk_jobs j ON j.number = l.job_number
WHERE l.at >= to_timestamp($2::bigint / 1000.0) AND l.outcome = 'sent' AND j.sender_id = $1);
