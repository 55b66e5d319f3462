-- name: change_job
-- Only what may still change; a final job keeps all but its name.
UPDATE bulk_jobs SET name = $3, rate = $4, weight = $5, priority = $6, scheduled_ms = $7,
  expires_ms = $8
WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid);
