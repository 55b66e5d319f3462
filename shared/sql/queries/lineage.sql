-- name: change_job
-- Only what may still change; a final job keeps all but its name.
UPDATE bulk_jobs SET name = $3, rate = $4, weight = $5, priority = $6, scheduled_ms = $7,
  expires_ms = $8
WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid);

-- name: family
-- Up to the job whose message is its own, then down through all its retries.
WITH RECURSIVE up AS (
  SELECT id, parent, is_retry FROM bulk_jobs WHERE id = $1
  UNION ALL
  SELECT p.id, p.parent, p.is_retry FROM bulk_jobs p JOIN up ON up.is_retry AND p.id = up.parent
), line AS (
  SELECT j.number, j.id, j.parent, j.state FROM bulk_jobs j JOIN up ON j.id = up.id AND NOT up.is_retry
  UNION ALL
  SELECT c.number, c.id, c.parent, c.state FROM bulk_jobs c JOIN line ON c.parent = line.id
  WHERE c.is_retry
)
SELECT number, id, parent, state FROM line ORDER BY number LIMIT $2;

-- name: lock_root
-- Whoever makes a retry of a family holds it.
SELECT 1 FROM bulk_jobs WHERE id = $1 FOR UPDATE;
