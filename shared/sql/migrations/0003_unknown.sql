-- The few jobs with recipients that nobody knows about, for a gauge read at every scrape.
-- migrate:up
CREATE INDEX bulk_jobs_unknown ON bulk_jobs (number) WHERE unknown > 0;

-- migrate:down
DROP INDEX bulk_jobs_unknown;
