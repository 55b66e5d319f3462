-- name: drop_old_uploads
-- A few at a time; of two who sweep each takes others.
DELETE FROM uploads WHERE id IN (
  SELECT id FROM uploads WHERE expires_ms <= extract(epoch FROM now()) * 1000
  LIMIT $1 FOR UPDATE SKIP LOCKED);

-- name: drop_job_keys
-- The partial index holds the rows that have a key, which are those of the last day or so.
UPDATE bulk_jobs SET idempotency_key = NULL, idempotency_route = NULL, request_hash = NULL,
  response = NULL
WHERE number IN (
  SELECT number FROM bulk_jobs
  WHERE idempotency_key IS NOT NULL AND created_ms < (extract(epoch FROM now()) - $1::integer) * 1000
  LIMIT $2 FOR UPDATE SKIP LOCKED);

-- name: drop_upload_keys
-- A file may be kept for longer than its key.
UPDATE uploads SET idempotency_key = NULL, request_hash = NULL
WHERE id IN (
  SELECT id FROM uploads
  WHERE idempotency_key IS NOT NULL AND created_ms < (extract(epoch FROM now()) - $1::integer) * 1000
  LIMIT $2 FOR UPDATE SKIP LOCKED);
