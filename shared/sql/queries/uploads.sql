-- name: add_upload
-- One statement counts and adds, so that the limit is nearly exact; nearly is enough.
INSERT INTO uploads (id, owner, filename, format, first_row, rows, columns, phone_column,
  default_region, counts, note, content, created_ms, expires_ms, idempotency_key, request_hash)
SELECT $1, $2::uuid, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16
WHERE (SELECT count(*) FROM uploads WHERE owner = $2::uuid) < $17 RETURNING id;

-- name: forget_uploads
-- A few at a time: whoever adds one sweeps.
DELETE FROM uploads WHERE id IN (SELECT id FROM uploads WHERE expires_ms <= $1 LIMIT 100);

-- name: upload
-- The owner stands inside the question; one whose time is over is gone already.
SELECT * FROM uploads WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid) AND expires_ms > $3;

-- name: idempotent_upload
-- The first answer can be made again from the row itself.
SELECT id, owner, filename, format, first_row, rows, columns, phone_column, default_region, counts,
  note, created_ms, expires_ms, idempotency_key, request_hash
FROM uploads WHERE owner = $1::uuid AND idempotency_key = $2;

-- name: change_upload
-- The content stays as it was read; only how it is looked at changes.
UPDATE uploads SET phone_column = $3, default_region = $4, counts = $5
WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid);

-- name: drop_upload
-- With all it holds.
DELETE FROM uploads WHERE id = $1 AND ($2::uuid IS NULL OR owner = $2::uuid);
