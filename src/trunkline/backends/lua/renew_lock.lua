-- Let a lease last anew; 0 if it has ended.
-- KEYS[1]: the lock. ARGV: token of the owner, milliseconds that the lease lasts.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
