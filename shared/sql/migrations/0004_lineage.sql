-- What a job stems from, and what its caller wrote on it.
-- migrate:up
ALTER TABLE bulk_jobs ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN is_retry boolean NOT NULL DEFAULT false;
CREATE INDEX bulk_jobs_parent ON bulk_jobs (parent) WHERE parent IS NOT NULL;
CREATE INDEX bulk_jobs_campaign ON bulk_jobs (campaign_id, number) WHERE campaign_id IS NOT NULL;
CREATE INDEX bulk_jobs_metadata ON bulk_jobs USING gin (metadata jsonb_path_ops);

-- migrate:down
DROP INDEX bulk_jobs_metadata, bulk_jobs_campaign, bulk_jobs_parent;
ALTER TABLE bulk_jobs DROP COLUMN metadata, DROP COLUMN is_retry;
