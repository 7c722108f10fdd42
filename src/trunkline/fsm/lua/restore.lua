-- When it expires or '', flow, state, then names and values.
replace(ARGV[2], ARGV[3], 4)
if ARGV[1] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[1]) end
